/** Name of the guard filter, under which the routes carry its settings. */
export const guardFilter = "kvmesh.model_guard";
