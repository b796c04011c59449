/**
 * The version of this package. Written by `npm version`, from package.json: reading that file at run time would break
 * where a bundler has left it behind.
 */
export const version = "0.1.0"
