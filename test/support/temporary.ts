/**
 * Temporary directories, which go when all tests are over.
 */
import { mkdtempSync } from "node:fs"
import { join } from "node:path"
import { inject } from "vitest"

/** An empty directory of its own for the caller. */
export const temporaryDirectory = (prefix: string): string => mkdtempSync(join(inject("temporary"), prefix))
