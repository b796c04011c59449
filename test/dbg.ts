import { generate, run, shrink } from "./support/simulation.ts"
const l = console.log
console.log = () => {}
const v = shrink(run(generate(Number(process.argv[2])))!)
console.log = l
const w = run({ seed: v.seed, steps: v.steps })!
console.log(w.message, w.history.join("\n"))
