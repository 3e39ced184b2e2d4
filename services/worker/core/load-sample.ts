import { parsePrometheusText } from "./prometheus-text.ts";

/** What the engine says of itself; counters count from the engine's start. Never negative, always finite. */
export interface LoadSample {
  readonly running: number;
  readonly waiting: number;
  readonly kvUsageRatio: number;
  /** Without those whose KV came from another engine: they cost no prefill here. */
  readonly promptTokens: number;
  readonly prefixQueryTokens: number;
  readonly prefixHitTokens: number;
  readonly generatedTokens: number;
  readonly finishedRequests: number;
  readonly preemptions: number;
  readonly interTokenSecondsSum: number;
  readonly interTokenCount: number;
  readonly prefillSecondsSum: number;
  readonly prefillCount: number;
}

/** What the engine says of its cache in `vllm:cache_config_info`. */
export interface EngineCacheInfo {
  readonly blockSizeTokens: number;
  /** 0 when unknown. */
  readonly blockCount: number;
  readonly prefixCaching: boolean;
}

/** One reading of an engine's metrics page. */
export interface EngineReading {
  readonly load: LoadSample;
  /** Start of the engine's HTTP process, seconds since 1970; `undefined` when it does not say. */
  readonly processStartSeconds: number | undefined;
  readonly cache: EngineCacheInfo | undefined;
}

/** Metric of vLLM → what it adds to. Older names stand beside the newer ones. */
const sources: ReadonlyMap<string, keyof LoadSample> = new Map<string, keyof LoadSample>([
  ["vllm:num_requests_running", "running"],
  ["vllm:num_requests_waiting", "waiting"],
  ["vllm:kv_cache_usage_perc", "kvUsageRatio"],
  ["vllm:gpu_cache_usage_perc", "kvUsageRatio"],
  ["vllm:prompt_tokens_total", "promptTokens"],
  ["vllm:prefix_cache_queries_total", "prefixQueryTokens"],
  ["vllm:gpu_prefix_cache_queries_total", "prefixQueryTokens"],
  ["vllm:prefix_cache_hits_total", "prefixHitTokens"],
  ["vllm:gpu_prefix_cache_hits_total", "prefixHitTokens"],
  ["vllm:generation_tokens_total", "generatedTokens"],
  ["vllm:request_success_total", "finishedRequests"],
  ["vllm:num_preemptions_total", "preemptions"],
  ["vllm:inter_token_latency_seconds_sum", "interTokenSecondsSum"],
  ["vllm:time_per_output_token_seconds_sum", "interTokenSecondsSum"],
  ["vllm:inter_token_latency_seconds_count", "interTokenCount"],
  ["vllm:time_per_output_token_seconds_count", "interTokenCount"],
  ["vllm:request_prefill_time_seconds_sum", "prefillSecondsSum"],
  ["vllm:request_prefill_time_seconds_count", "prefillCount"],
]);
const promptBySource = "vllm:prompt_tokens_by_source_total";
const processStart = "process_start_time_seconds";
const cacheConfig = "vllm:cache_config_info";
const wanted: ReadonlySet<string> = new Set([
  ...sources.keys(),
  promptBySource,
  processStart,
  cacheConfig,
]);

/**
 * Reads vLLM's `/metrics`. Samples that carry another `engine` label than `dpRank` are left out; those of
 * several reasons or models are added up. Gives `undefined` when the page has no running-request gauge,
 * which means that it is not vLLM's. Never throws.
 */
export function readVllmMetrics(text: string, dpRank: number): EngineReading | undefined {
  const load: Record<keyof LoadSample, number> = {
    running: 0,
    waiting: 0,
    kvUsageRatio: 0,
    promptTokens: 0,
    prefixQueryTokens: 0,
    prefixHitTokens: 0,
    generatedTokens: 0,
    finishedRequests: 0,
    preemptions: 0,
    interTokenSecondsSum: 0,
    interTokenCount: 0,
    prefillSecondsSum: 0,
    prefillCount: 0,
  };
  const rank = String(dpRank);
  let runningSamples = 0;
  let externalTokens = 0;
  let processStartSeconds: number | undefined;
  let cache: EngineCacheInfo | undefined;
  parsePrometheusText(text, wanted, ({ name, labels, value }) => {
    if (name === processStart) {
      if (Number.isFinite(value) && value > 0) processStartSeconds = value;
      return;
    }
    const engine = labels.get("engine");
    if (engine !== undefined && engine !== rank) return;
    if (name === cacheConfig) {
      cache = cacheInfo(labels) ?? cache;
      return;
    }
    if (name === promptBySource) {
      const isExternal = labels.get("source") === "external_kv_transfer";
      if (isExternal && Number.isFinite(value) && value > 0) externalTokens += value;
      return;
    }
    const field = sources.get(name);
    if (field === undefined || !Number.isFinite(value) || value < 0) return;
    if (field === "running") runningSamples++;
    load[field] += value;
  });
  if (runningSamples === 0) return undefined;
  load.promptTokens = Math.max(0, load.promptTokens - externalTokens);
  load.kvUsageRatio = Math.min(1, load.kvUsageRatio);
  return { load, processStartSeconds, cache };
}

function cacheInfo(labels: ReadonlyMap<string, string>): EngineCacheInfo | undefined {
  const blockSizeTokens = Number(labels.get("block_size"));
  if (!Number.isSafeInteger(blockSizeTokens) || blockSizeTokens < 1) return undefined;
  const blocks = Number(labels.get("num_gpu_blocks"));
  const prefixCaching = labels.get("enable_prefix_caching");
  return {
    blockSizeTokens,
    blockCount: Number.isSafeInteger(blocks) && blocks > 0 ? blocks : 0,
    prefixCaching: prefixCaching === undefined || prefixCaching.toLowerCase() !== "false",
  };
}
