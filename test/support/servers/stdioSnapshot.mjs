/**
 * Leaves what `stdio.mjs` needs of the SDK where it finds it: Node's startup snapshot of this (`--build-snapshot`) has
 * it loaded already, which is two thirds of what a child does otherwise.
 */
import * as stdioServer from "./stdioServer.mjs"

globalThis.stdioServer = stdioServer
