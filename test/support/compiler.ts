/**
 * What the compiler itself knows of a project: its own parser and checker, through the API that TypeScript 7 calls
 * unstable. Only this file uses it.
 */
import * as Effect from "effect/Effect"
import * as Record from "effect/Record"
import { symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import {
  type ExportDeclaration,
  type ImportDeclaration,
  type Node,
  type NodeArray,
  SyntaxKind
} from "typescript/unstable/ast"
import { API, type Diagnostic, type Project, type Symbol, SymbolFlags, type Type } from "typescript/unstable/sync"
import { temporaryDirectory } from "./temporary.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))

/** Opens the project of a `tsconfig.json`; the compiler's process ends with the scope. */
export const open = Effect.fnUntraced(function*(tsconfig: string) {
  const api = yield* Effect.acquireRelease(
    Effect.sync(() => new API()),
    (started) => Effect.sync(() => started.close())
  )
  const project = api.updateSnapshot({ openProjects: [tsconfig] }).getProject(tsconfig)
  return project ?? (yield* Effect.die(new Error(`${tsconfig} is not a project`)))
})

/** Opens a project of these files alone, which knows nothing of what they import. */
export const parse = (files: ReadonlyArray<string>) => {
  const tsconfig = join(temporaryDirectory("compiler-"), "tsconfig.json")
  const compilerOptions = { noResolve: true, noLib: true, types: [], module: "NodeNext" }
  writeFileSync(tsconfig, JSON.stringify({ compilerOptions, files }))
  return open(tsconfig)
}

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

/** Something with a name that a user may write. */
export interface Named {
  readonly name: string
  readonly documentation: string
  /** Where it is declared: the same for all the names of one thing. */
  readonly declared: string
}

/** One name that a file exports, and what belongs to it. */
export interface Exported extends Named {
  /** Whether it is there at run time. */
  readonly value: boolean
  /** Whether it can stand where a type stands, and with how many parameters. */
  readonly type: boolean
  readonly typeParameters: number
  /** What can be read of a value of this type, unless it is a union. */
  readonly members: ReadonlyArray<Named>
  /** What can be read of the class itself. */
  readonly statics: ReadonlyArray<Named>
}

type Generic = Node & { readonly typeParameters?: NodeArray<Node> | undefined }

// Unique symbols and private fields, type ids, and what each class has
const isHidden = ({ name }: Symbol) => name.startsWith("__") || name.startsWith("~") || name === "prototype"

/**
 * What a file exports. Of members those that are declared below `directory` alone: what is inherited from a package is
 * that package's.
 */
export const exportsOf = (project: Project, file: string, directory: string): ReadonlyArray<Exported> => {
  const { checker } = project

  const named = (symbol: Symbol, name = symbol.name): Named => ({
    name,
    documentation: checker.getDocumentationCommentOfSymbol(symbol),
    declared: symbol.declarations.map(({ index, path }) => `${path}:${index}`).join()
  })
  // The kinds of a union have names of their own
  const membersOf = (type: Type | undefined): ReadonlyArray<Named> =>
    type === undefined || type.isUnionType() ? [] : checker.getPropertiesOfType(type)
      .filter((symbol) => !isHidden(symbol) && symbol.declarations.some(({ path }) => path.startsWith(directory)))
      .map((symbol) => named(symbol))

  const module = checker.getSymbolAtLocation(project.program.getSourceFile(file)!)!
  const describe = (exported: Symbol): Exported => {
    const symbol = (exported.flags & SymbolFlags.Alias) === 0 ? exported : checker.getAliasedSymbol(exported)
    const type = (symbol.flags & SymbolFlags.Type) !== 0
    const declarations = symbol.declarations.map((handle) => handle.resolve(project) as Generic)
    return {
      ...named(symbol, exported.name),
      value: (symbol.flags & SymbolFlags.Value) !== 0,
      type,
      typeParameters: Math.max(0, ...declarations.map(({ typeParameters }) => typeParameters?.length ?? 0)),
      members: type ? membersOf(checker.getDeclaredTypeOfSymbol(symbol)) : [],
      statics: (symbol.flags & SymbolFlags.Class) === 0 ? [] : membersOf(checker.getTypeOfSymbol(symbol))
    }
  }
  return checker.getExportsOfModule(module).map(describe)
}

/** What is wrong, and the reasons indented below it. */
const print = ({ messageChain, text }: Diagnostic, indent = ""): string =>
  [indent + text, ...(messageChain ?? []).map((reason) => print(reason, `${indent}  `))].join("\n")

/**
 * What the compiler has against a project, and against those of its files that are `ours`: not against all that these
 * use, which takes twenty seconds where Effect is among it.
 */
export const checkOurs = Effect.fnUntraced(function*(tsconfig: string, ours: (file: string) => boolean) {
  const { program } = yield* open(tsconfig)
  const files = program.getSourceFileNames().filter(ours)
  const complaints = [
    program.getConfigFileParsingDiagnostics(),
    program.getProgramDiagnostics(),
    ...files.flatMap((file) => [program.getSyntacticDiagnostics(file), program.getSemanticDiagnostics(file)])
  ].flat().map((diagnostic) => `${diagnostic.fileName ?? "the project"}: ${print(diagnostic)}`)
  return { files, complaints }
}, Effect.scoped)

/** A complaint: the code that the compiler underlines, and what it says. */
export interface Complaint {
  readonly at: string
  readonly text: string
}

/**
 * What the compiler has against each of these files, as one project on the sources of this package, with the options of
 * this repository. Only against these: what is wrong elsewhere is elsewhere's to show.
 */
export const check = Effect.fnUntraced(function*<Name extends string>(
  files: Readonly<Record<Name, string>>,
  lib: ReadonlyArray<string> = ["ES2023"]
) {
  const directory = temporaryDirectory("compiler-")
  symlinkSync(join(root, "node_modules"), join(directory, "node_modules"))
  const write = (name: string, content: string) => writeFileSync(join(directory, name), content)
  write("package.json", JSON.stringify({ type: "module" }))
  const paths = {
    "effect-mcp-sessions": [join(root, "src/index.ts")],
    "effect-mcp-sessions/*": [join(root, "src/*.ts")]
  }
  const compilerOptions = { lib, paths, noUnusedLocals: false, noUnusedParameters: false, checkers: 1 }
  write("tsconfig.json", JSON.stringify({ extends: join(root, "tsconfig.json"), compilerOptions, include: ["*.ts"] }))
  for (const [name, content] of Record.toEntries<Name, string>(files)) write(name, content)
  const { program } = yield* open(join(directory, "tsconfig.json"))
  return Record.map(files, (content, name): ReadonlyArray<Complaint> => {
    const file = join(directory, name)
    return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)]
      .map((diagnostic) => ({ at: content.slice(diagnostic.pos, diagnostic.end), text: print(diagnostic) }))
  })
}, Effect.scoped)
