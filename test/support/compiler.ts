/**
 * What the compiler itself knows of a project: its own parser and checker, through the API that TypeScript 7 calls
 * unstable. Only this file uses it.
 */
import * as Effect from "effect/Effect"
import { type ExportDeclaration, type ImportDeclaration, type Node, SyntaxKind } from "typescript/unstable/ast"
import { API, type Project } from "typescript/unstable/sync"

/** Opens the project of a `tsconfig.json`; the compiler's process ends with the scope. */
export const open = Effect.fnUntraced(function*(tsconfig: string) {
  const api = yield* Effect.acquireRelease(
    Effect.sync(() => new API()),
    (started) => Effect.sync(() => started.close())
  )
  const project = api.updateSnapshot({ openProjects: [tsconfig] }).getProject(tsconfig)
  return project ?? (yield* Effect.die(new Error(`${tsconfig} is not a project`)))
})

/** One import of a file: also `export … from`, `import()` and `import("…").Type`. */
export interface Import {
  readonly from: string
  /** Whether nothing is left of it in the code that runs. */
  readonly erased: boolean
}

const isErased = (node: Node): boolean => {
  switch (node.kind) {
    case SyntaxKind.ImportDeclaration:
      return (node as ImportDeclaration).importClause?.phaseModifier === SyntaxKind.TypeKeyword
    case SyntaxKind.ExportDeclaration:
      return (node as ExportDeclaration).isTypeOnly
    default:
      // import("…") is a call where it runs, and a type where it does not
      return node.kind !== SyntaxKind.CallExpression
  }
}

/** What a file imports, in its own words. */
export const importsOf = (project: Project, file: string): ReadonlyArray<Import> =>
  project.program.getSourceFile(file)!.imports.map((specifier) => ({
    from: (specifier as Node & { readonly text: string }).text,
    erased: isErased(specifier.parent)
  }))
