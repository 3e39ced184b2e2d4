/**
 * Body fields that only the mesh itself may set: they steer KV transfer between engines, pick ranks or
 * salt caches. From a client some of them crash an engine or break isolation, so they are refused.
 * Names as accepted by vLLM 0.32, SGLang 0.5 and TensorRT-LLM 1.3. Routers refuse them, relays once more, and Envoy's guard
 * where no router answers.
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
  "cache_salt_id",
  "vllm_xargs",
]);

/** The one reserved field that a router may have put into a body itself. */
export const saltField = "cache_salt";
