import { createMetrics, type MetricSpec } from "../../shared/edge/metrics.ts";
import type { EngineStats, StepStart } from "../core/engine/engine-types.ts";
import { collectKv, kvCatalogue, type KvState } from "./kv/kv-metrics.ts";

const labels = ["model_name", "engine"];

/** Latency bounds of vLLM's request histograms, seconds. */
const requestSeconds = [
  0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1_920, 7_680,
];
const firstTokenSeconds = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
  160, 640, 2_560,
];
const tokenSeconds = [
  0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
];
const stepTokens = Array.from({ length: 15 }, (_, i) => 2 ** i).filter((n) => n !== 2 && n !== 4);

/** 1, 2, 5, 10, … up to `max`, as vLLM's token-count histograms. */
function oneTwoFive(max: number): number[] {
  const out: number[] = [];
  for (let decade = 1; decade <= max; decade *= 10) {
    for (const mantissa of [1, 2, 5]) if (mantissa * decade <= max) out.push(mantissa * decade);
  }
  return out;
}

type Spec<Kind extends MetricSpec["kind"]> = MetricSpec & { readonly kind: Kind };

function catalogue(contextTokensMax: number) {
  const counter = (name: string, help: string, extra: string[] = []): Spec<"counter"> => ({
    name: `vllm:${name}_total`,
    kind: "counter",
    help,
    labels: [...labels, ...extra],
  });
  const gauge = (name: string, help: string, extra: string[] = []): Spec<"gauge"> => ({
    name: `vllm:${name}`,
    kind: "gauge",
    help,
    labels: [...labels, ...extra],
  });
  const histogram = (
    name: string,
    help: string,
    buckets: readonly number[],
  ): Spec<"histogram"> => ({
    name: `vllm:${name}`,
    kind: "histogram",
    help,
    labels,
    buckets,
  });
  const tokens = oneTwoFive(contextTokensMax);
  return {
    running: gauge("num_requests_running", "Requests in model execution batches."),
    waiting: gauge("num_requests_waiting", "Requests waiting to be processed."),
    waitingByReason: gauge("num_requests_waiting_by_reason", "Waiting requests by reason.", [
      "reason",
    ]),
    sleepState: gauge("engine_sleep_state", "Engine sleep state; 1 for the state it is in.", [
      "sleep_state",
    ]),
    kvUsage: gauge("kv_cache_usage_perc", "KV-cache usage, 1 means 100 percent usage."),
    prefixQueries: counter("prefix_cache_queries", "Prefix cache queries, tokens."),
    prefixHits: counter("prefix_cache_hits", "Prefix cache hits, tokens."),
    externalQueries: counter("external_prefix_cache_queries", "Connector cache queries, tokens."),
    externalHits: counter("external_prefix_cache_hits", "Connector cache hits, tokens."),
    preemptions: counter("num_preemptions", "Preemptions from the engine."),
    promptTokens: counter("prompt_tokens", "Prefill tokens processed, counted at the first token."),
    promptBySource: counter("prompt_tokens_by_source", "Prompt tokens by source.", ["source"]),
    promptCached: counter("prompt_tokens_cached", "Cached prompt tokens."),
    promptCachedBySource: counter("prompt_tokens_cached_by_source", "Cached tokens by tier.", [
      "source",
    ]),
    generationTokens: counter("generation_tokens", "Generation tokens processed."),
    success: counter("request_success", "Finished requests; disconnected ones do not count.", [
      "finished_reason",
    ]),
    rejections: {
      name: "vllm:admission_rejections_total",
      kind: "counter",
      help: "Requests rejected by a queue limit.",
      labels: ["model_name", "reason"],
    },
    requestPromptTokens: histogram("request_prompt_tokens", "Prefill tokens of a request.", tokens),
    requestGenerationTokens: histogram("request_generation_tokens", "Generated tokens.", tokens),
    requestMaxGenerationTokens: histogram(
      "request_max_num_generation_tokens",
      "Most generated tokens over the choices of a request.",
      tokens,
    ),
    stepTokens: histogram("iteration_tokens_total", "Tokens per engine step.", stepTokens),
    paramsN: histogram("request_params_n", "The n request parameter.", [1, 2, 5, 10, 20]),
    paramsMaxTokens: histogram("request_params_max_tokens", "The max_tokens parameter.", tokens),
    firstToken: histogram(
      "time_to_first_token_seconds",
      "Time to first token, s.",
      firstTokenSeconds,
    ),
    interToken: histogram("inter_token_latency_seconds", "Inter-token latency, s.", tokenSeconds),
    timePerToken: histogram(
      "request_time_per_output_token_seconds",
      "Time per output token of a request, s.",
      tokenSeconds,
    ),
    endToEnd: histogram("e2e_request_latency_seconds", "Request latency, s.", requestSeconds),
    queueTime: histogram("request_queue_time_seconds", "Time waiting, s.", requestSeconds),
    inferenceTime: histogram("request_inference_time_seconds", "Time running, s.", requestSeconds),
    prefillTime: histogram("request_prefill_time_seconds", "Time in prefill, s.", requestSeconds),
    decodeTime: histogram("request_decode_time_seconds", "Time in decode, s.", requestSeconds),
    requestPreemptions: histogram(
      "request_num_preemptions",
      "Preemptions of a request.",
      [1, 2, 3, 4, 5, 10, 20],
    ),
    prefillComputed: histogram(
      "request_prefill_kv_computed_tokens",
      "New KV tokens computed in prefill.",
      tokens,
    ),
    cacheConfig: {
      name: "vllm:cache_config_info",
      kind: "gauge",
      help: "Cache configuration; always 1.",
      labels: [
        "engine",
        "block_size",
        "num_gpu_blocks",
        "cache_dtype",
        "enable_prefix_caching",
        "prefix_caching_hash_algo",
        "kv_cache_size_tokens",
      ],
    },
    kvDropped: {
      name: "kvmesh_engine_dropped_event_batches_total",
      kind: "counter",
      help: "Batches of KV events that never reached the socket.",
      labels: [],
    },
    faults: {
      name: "kvmesh_engine_faults_total",
      kind: "counter",
      help: "Faults started on command.",
      labels: ["kind"],
    },
  } as const satisfies Record<string, MetricSpec>;
}

/** What one finished sequence adds to the histograms; times in seconds. */
export interface FinishedRequest {
  readonly reason: string;
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly cachedTokens: number;
  readonly preemptions: number;
  readonly n: number;
  readonly maxTokens: number;
  readonly endToEndS: number;
  readonly queueS: number;
  readonly prefillS: number;
  readonly decodeS: number;
}

/** Prometheus metrics under vLLM's names (`vllm/v1/metrics/loggers.py`, 0.32.0). */
export function createEngineMetrics(options: {
  model: string;
  contextTokensMax: number;
  blockSizeTokens: number;
  capacityBlocks: number;
  prefixCaching: boolean;
  /** Current counts, read at each scrape. */
  stats: () => EngineStats;
  droppedBatches: () => number;
  /** State of the KV connector; absent without one. */
  kv?: () => KvState;
}) {
  const { registry, metrics } = createMetrics({
    ...catalogue(options.contextTokensMax),
    ...kvCatalogue,
  });
  // An engine without a connector does not have a connector's families.
  if (options.kv === undefined) {
    for (const { name } of Object.values(kvCatalogue)) registry.removeSingleMetric(name);
  }
  const own = { model_name: options.model, engine: "0" };
  const firstToken = metrics.firstToken.labels(own);
  const interToken = metrics.interToken.labels(own);
  const iteration = metrics.stepTokens.labels(own);
  metrics.cacheConfig.set(
    {
      engine: "0",
      block_size: String(options.blockSizeTokens),
      num_gpu_blocks: String(options.capacityBlocks),
      cache_dtype: "auto",
      enable_prefix_caching: options.prefixCaching ? "True" : "False",
      prefix_caching_hash_algo: "sha256_cbor",
      kv_cache_size_tokens: String(options.capacityBlocks * options.blockSizeTokens),
    },
    1,
  );
  for (const state of ["awake", "weights_offloaded", "discard_all"]) {
    metrics.sleepState.set({ ...own, sleep_state: state }, state === "awake" ? 1 : 0);
  }
  for (const reason of ["stop", "length", "abort", "error", "repetition"]) {
    metrics.success.inc({ ...own, finished_reason: reason }, 0);
  }
  for (const reason of ["max_num_queued_reqs", "max_num_queued_tokens"]) {
    metrics.rejections.inc({ model_name: options.model, reason }, 0);
  }
  for (const source of ["local_compute", "local_cache_hit", "external_kv_transfer"]) {
    metrics.promptBySource.inc({ ...own, source }, 0);
  }
  for (const source of ["device", "host", "p2p", "disk", "external_unspecified"]) {
    metrics.promptCachedBySource.inc({ ...own, source }, 0);
  }
  for (const counter of [
    metrics.externalQueries,
    metrics.externalHits,
    metrics.promptTokens,
    metrics.promptCached,
  ]) {
    counter.inc(own, 0);
  }

  // The core counts; a scrape adds what came since the last one.
  let seen: EngineStats | undefined;
  let seenDropped = 0;
  /** Adds to counters what came since the last scrape. */
  const counted = new Map<string, number>();
  const grown = (name: string, total: number): number => {
    const since = total - (counted.get(name) ?? 0);
    counted.set(name, total);
    return since;
  };
  const collect = (): void => {
    const stats = options.stats();
    metrics.running.set(own, stats.runningSequences);
    metrics.waiting.set(own, stats.waitingSequences + stats.loadingSequences);
    metrics.waitingByReason.set({ ...own, reason: "capacity" }, stats.waitingSequences);
    metrics.waitingByReason.set({ ...own, reason: "deferred" }, stats.loadingSequences);
    metrics.kvUsage.set(own, stats.referencedBlocks / stats.usableBlocks);
    metrics.prefixQueries.inc(own, stats.prefixQueryTokens - (seen?.prefixQueryTokens ?? 0));
    const hits = stats.prefixHitTokens - (seen?.prefixHitTokens ?? 0);
    metrics.prefixHits.inc(own, hits);
    metrics.promptCachedBySource.inc({ ...own, source: "device" }, hits);
    metrics.preemptions.inc(own, stats.preemptions - (seen?.preemptions ?? 0));
    metrics.generationTokens.inc(own, stats.generatedTokens - (seen?.generatedTokens ?? 0));
    if (options.kv !== undefined) {
      collectKv(metrics, own, options.kv(), grown);
      // A connector is asked for whatever the own cache does not have, also on the prefill side.
      const asked = stats.prefixQueryTokens - stats.prefixHitTokens;
      metrics.externalQueries.inc(own, grown("externalQueries", asked));
      metrics.externalHits.inc(own, grown("externalHits", stats.externalTokens));
    }
    const dropped = options.droppedBatches();
    metrics.kvDropped.inc(dropped - seenDropped);
    seenDropped = dropped;
    seen = stats;
  };

  return {
    async text(): Promise<string> {
      collect();
      return registry.metrics();
    },
    contentType: registry.contentType,
    stepStarted(step: StepStart): void {
      iteration.observe(step.stepTokens);
    },
    /** `externalTokens` counts what was asked of another engine, also when it was computed here in the end. */
    firstToken(first: {
      readonly seconds: number;
      readonly promptTokens: number;
      readonly cachedTokens: number;
      readonly externalTokens: number;
    }): void {
      const { promptTokens, cachedTokens, externalTokens } = first;
      firstToken.observe(first.seconds);
      metrics.promptTokens.inc(own, promptTokens);
      metrics.promptCached.inc(own, cachedTokens + externalTokens);
      const computed = promptTokens - cachedTokens - externalTokens;
      metrics.promptBySource.inc({ ...own, source: "local_compute" }, computed);
      metrics.promptBySource.inc({ ...own, source: "local_cache_hit" }, cachedTokens);
      metrics.promptBySource.inc({ ...own, source: "external_kv_transfer" }, externalTokens);
      metrics.promptCachedBySource.inc({ ...own, source: "p2p" }, externalTokens);
    },
    /** One pull that brought every block. */
    pullEnded(pull: { readonly bytes: number; readonly ms: number }): void {
      metrics.nixlSeconds.observe(own, pull.ms / 1_000);
      metrics.nixlBytes.observe(own, pull.bytes);
    },
    nextToken(seconds: number): void {
      interToken.observe(seconds);
    },
    finished(request: FinishedRequest): void {
      metrics.success.inc({ ...own, finished_reason: request.reason });
      metrics.requestPromptTokens.observe(own, request.promptTokens);
      metrics.requestGenerationTokens.observe(own, request.generatedTokens);
      metrics.requestMaxGenerationTokens.observe(own, request.generatedTokens);
      metrics.paramsN.observe(own, request.n);
      metrics.paramsMaxTokens.observe(own, request.maxTokens);
      metrics.endToEnd.observe(own, request.endToEndS);
      metrics.queueTime.observe(own, request.queueS);
      metrics.prefillTime.observe(own, request.prefillS);
      metrics.decodeTime.observe(own, request.decodeS);
      metrics.inferenceTime.observe(own, request.prefillS + request.decodeS);
      metrics.requestPreemptions.observe(own, request.preemptions);
      metrics.prefillComputed.observe(own, request.promptTokens - request.cachedTokens);
      const gaps = request.generatedTokens - 1;
      if (gaps > 0) metrics.timePerToken.observe(own, request.decodeS / gaps);
    },
    rejected(): void {
      metrics.rejections.inc({ model_name: options.model, reason: "max_num_queued_reqs" });
    },
    fault(kind: string): void {
      metrics.faults.inc({ kind });
    },
  };
}

/** Metrics of one engine process. */
export type EngineMetrics = ReturnType<typeof createEngineMetrics>;
