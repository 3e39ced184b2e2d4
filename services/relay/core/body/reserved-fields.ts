/**
 * Body fields that only the mesh itself may set; the same as those that routers refuse. A relay refuses them again: what
 * it sends to engines steers KV between them, and a second value from a client could crash one or read another's cache.
 */
export const reservedFields: ReadonlySet<string> = new Set([
  "kv_transfer_params",
  "ec_transfer_params",
  "disaggregated_params",
  "bootstrap_host",
  "bootstrap_port",
  "bootstrap_room",
  "bootstrap_pair_key",
  "disagg_prefill_dp_rank",
  "data_parallel_rank",
  "data_parallel_rank_decode",
  "routed_dp_rank",
  "cache_salt",
  "vllm_xargs",
]);

/** The one reserved field that a router may have put into a body itself. */
export const saltField = "cache_salt";
