import type { EngineConfig } from "../../config.ts";
import type { EngineStats } from "../../core/engine/engine-types.ts";
import { sendJsonText } from "../answer.ts";
import type { SurfaceRoutes } from "../http-surface.ts";
import { flag, parseJson, text } from "../request-body.ts";

/** What the routes of a flavour show. */
export interface FlavourFacts {
  readonly config: EngineConfig;
  readonly contextTokensMax: number;
  readonly capacityBlocks: number;
  readonly imitatedVersion: string;
  readonly stats: () => EngineStats;
  readonly ports: () => { readonly kv: number; readonly bootstrap: number };
  readonly rooms: () => number;
  readonly wallUnixMs: () => number;
  /** `kv_events` of SGLang's server info, or null. */
  readonly eventSource: () => object | null;
  readonly abort: (requestId: string | undefined) => number;
  readonly flush: () => boolean;
}

/** Routes that a flavour has beyond vLLM's surface: those that a worker or a relay needs. */
export function flavourRoutes(facts: FlavourFacts): SurfaceRoutes {
  switch (facts.config.flavour) {
    case "vllm":
      return {};
    case "sglang":
      return sglangRoutes(facts);
    case "tensorrt-llm":
      return {
        "GET /health_generate": (_request, response) => {
          response.writeHead(200, { "content-length": 0 }).end();
        },
        "GET /server_info": (_request, response) => {
          const info = { disaggregated_params: { ctx_dp_rank: 0, ctx_info_endpoint: null } };
          sendJsonText(response, 200, JSON.stringify(info));
        },
      };
  }
}

function sglangRoutes(facts: FlavourFacts): SurfaceRoutes {
  const { config } = facts;
  const pageSize = config.blockSizeTokens;
  const modes = { both: "null", prefill: "prefill", decode: "decode" } as const;
  const mode = modes[config.role];
  const serverInfo: SurfaceRoutes[string] = (_request, response) => {
    const info = {
      model_path: config.model,
      served_model_name: config.model,
      version: facts.imitatedVersion,
      page_size: pageSize,
      max_total_num_tokens: (facts.capacityBlocks - 1) * pageSize,
      context_length: facts.contextTokensMax,
      disaggregation_mode: mode,
      disaggregation_bootstrap_port: facts.ports().bootstrap,
      disaggregation_transfer_backend: "fake",
      kv_events: facts.eventSource(),
    };
    sendJsonText(response, 200, JSON.stringify(info));
  };
  const modelInfo: SurfaceRoutes[string] = (_request, response) => {
    const info = { model_path: config.model, tokenizer_path: config.model, is_generation: true };
    sendJsonText(response, 200, JSON.stringify(info));
  };
  return {
    "GET /health_generate": (_request, response) => {
      response.writeHead(200, { "content-length": 0 }).end();
    },
    "GET /server_info": serverInfo,
    "GET /get_server_info": serverInfo,
    "GET /model_info": modelInfo,
    "GET /get_model_info": modelInfo,
    "GET /v1/loads": (_request, response) => {
      sendJsonText(response, 200, JSON.stringify(sglangLoads(facts, mode)));
    },
    "POST /flush_cache": (_request, response) => {
      const done = facts.flush();
      response.writeHead(done ? 200 : 400).end(done ? "Cache flushed." : "Requests are running.");
    },
    "POST /abort_request": (_request, response, bytes) => {
      const body = parseJson(bytes);
      const rid = text(body, "rid");
      if (flag(body, "abort_all")) facts.abort(undefined);
      else if (rid !== undefined && rid !== "") facts.abort(rid);
      response.writeHead(200, { "content-length": 0 }).end();
    },
  };
}

function sglangLoads(facts: FlavourFacts, mode: string): object {
  const stats = facts.stats();
  const pageSize = facts.config.blockSizeTokens;
  const usedTokens = stats.referencedBlocks * pageSize;
  const totalTokens = stats.usableBlocks * pageSize;
  const timestamp = new Date(facts.wallUnixMs()).toISOString();
  const waiting = stats.waitingSequences + stats.loadingSequences + facts.rooms();
  const queries = stats.prefixQueryTokens;
  return {
    timestamp,
    version: facts.imitatedVersion,
    dp_rank_count: 1,
    loads: [
      {
        dp_rank: 0,
        timestamp: facts.wallUnixMs() / 1_000,
        num_running_reqs: stats.runningSequences,
        num_waiting_reqs: waiting,
        num_waiting_uncached_tokens: stats.prefillBacklogTokens,
        num_used_tokens: usedTokens,
        num_total_tokens: usedTokens + stats.prefillBacklogTokens,
        max_total_num_tokens: totalTokens,
        token_usage: usedTokens / totalTokens,
        gen_throughput: 0,
        cache_hit_rate: queries === 0 ? 0 : stats.prefixHitTokens / queries,
        utilization: stats.runningSequences / facts.config.runningMax,
        max_running_requests: facts.config.runningMax,
        disaggregation: {
          mode,
          prefill_prealloc_queue_reqs: 0,
          prefill_inflight_queue_reqs: facts.rooms(),
          decode_prealloc_queue_reqs: 0,
          decode_transfer_queue_reqs: stats.loadingSequences,
          decode_retracted_queue_reqs: 0,
        },
      },
    ],
  };
}
