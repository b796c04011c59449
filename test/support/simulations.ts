/**
 * All simulations, in one file for those who bundle them.
 */
export { cluster } from "./clusterSimulation.ts"
export { pool } from "./poolSimulation.ts"
export { registry } from "./registrySimulation.ts"
export { report } from "./simulator.ts"
