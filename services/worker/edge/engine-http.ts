import { Agent, request } from "undici";
import { z } from "zod";
import { readVllmMetrics, type EngineCacheInfo, type EngineReading } from "../core/load-sample.ts";

/** Longest wait for any answer of the engine, ms. */
const timeoutMs = 2_000;
const metricsBytesMax = 16 * 1024 * 1024;
const jsonBytesMax = 1024 * 1024;

/** Where one data-parallel rank publishes. */
export interface EventSource {
  readonly endpoint: string;
  readonly replayEndpoint: string | undefined;
  readonly topic: string;
}

/** What an engine says of itself once it runs. */
export interface EngineFacts {
  /** Names of the base model, the main one first. */
  readonly modelNames: readonly string[];
  readonly contextTokensMax: number;
  readonly version: string;
  readonly cache: EngineCacheInfo | undefined;
  /** Token budget of one step and sequences that run at once; 0 when the engine does not tell. */
  readonly stepTokensMax: number;
  readonly runningRequestsMax: number;
  readonly processStartSeconds: number | undefined;
  /** By data-parallel rank; empty when the engine publishes no events. */
  readonly eventSources: ReadonlyMap<number, EventSource>;
}

/** One look at the engine. */
export type Probe =
  | { readonly kind: "answered"; readonly reading: EngineReading }
  /** Nothing listens. */
  | { readonly kind: "refused" }
  | { readonly kind: "failed"; readonly why: string };

const Models = z.object({
  data: z
    .array(
      z.object({
        id: z.string().min(1),
        parent: z.string().nullish(),
        max_model_len: z.number().int().positive().nullish(),
      }),
    )
    .min(1),
});
const Version = z.object({ version: z.string() });
const limit = z.number().int().positive().max(1_000_000_000).nullish().catch(undefined);
const ServerInfo = z.object({
  vllm_config: z.object({
    scheduler_config: z.object({ max_num_batched_tokens: limit, max_num_seqs: limit }),
  }),
});
const Sources = z.record(
  z.string().regex(/^\d{1,4}$/),
  z.object({
    enable_kv_cache_events: z.boolean().optional(),
    endpoint: z.string(),
    replay_endpoint: z.string().nullish(),
    topic: z.string().nullish(),
  }),
);

/** Client of one vLLM server. Every call has a deadline of 2 s and a bound on the answer's size. */
export class EngineHttp {
  readonly #base: URL;
  readonly #agent = new Agent({
    connect: { timeout: timeoutMs },
    connections: 4,
    keepAliveTimeout: 4_000,
  });

  constructor(url: string) {
    this.#base = new URL(url);
  }

  /** Health and metrics in one look; never throws. */
  async probe(dpRank: number): Promise<Probe> {
    try {
      const [health, metrics] = await Promise.all([
        this.#get("/health", jsonBytesMax),
        this.#get("/metrics", metricsBytesMax),
      ]);
      if (health.status !== 200) return failed(`/health answered ${String(health.status)}`);
      if (metrics.status !== 200) return failed(`/metrics answered ${String(metrics.status)}`);
      const reading = readVllmMetrics(metrics.text, dpRank);
      if (reading === undefined) return failed("/metrics has no vllm:num_requests_running");
      return { kind: "answered", reading };
    } catch (error) {
      return isRefused(error) ? { kind: "refused" } : failed(messageOf(error));
    }
  }

  /** Reads model, version, cache and event sources. Throws when a needed one is missing, saying which. */
  async discover(): Promise<EngineFacts> {
    const [models, version, sources, limits, probe] = await Promise.all([
      this.#json("/v1/models", Models),
      this.#json("/version", Version).catch(() => ({ version: "" })),
      this.#eventSources(),
      this.#limits(),
      this.probe(0),
    ]);
    if (probe.kind !== "answered") {
      throw new Error(
        `engine ${this.#base.origin}: ${probe.kind === "failed" ? probe.why : "nothing listens"}`,
      );
    }
    // A card with a parent is a LoRA adapter of the model, not a name of it.
    const cards = models.data.filter((card) => card.parent === null || card.parent === undefined);
    const contexts = models.data.map((card) => card.max_model_len ?? 0);
    return {
      modelNames: (cards.length > 0 ? cards : models.data).map((card) => card.id),
      contextTokensMax: Math.max(...contexts),
      version: version.version,
      cache: probe.reading.cache,
      ...limits,
      processStartSeconds: probe.reading.processStartSeconds,
      eventSources: sources,
    };
  }

  /** Ends all connections. */
  async close(): Promise<void> {
    await this.#agent.destroy();
  }

  /** Versions before 0.32 have no such page: then the settings must name the endpoints. */
  async #eventSources(): Promise<ReadonlyMap<number, EventSource>> {
    const answer = await this.#get("/kv_event_sources", jsonBytesMax);
    const out = new Map<number, EventSource>();
    if (answer.status !== 200) return out;
    const parsed = Sources.safeParse(JSON.parse(answer.text));
    if (!parsed.success) throw new Error(`/kv_event_sources: ${z.prettifyError(parsed.error)}`);
    const ranks = Object.entries(parsed.data).sort(([a], [b]) => Number(a) - Number(b));
    for (const [rank, source] of ranks) {
      if (source.enable_kv_cache_events === false) continue;
      const replay = source.replay_endpoint;
      out.set(Number(rank), {
        endpoint: reachable(source.endpoint, this.#base.hostname),
        replayEndpoint:
          replay === null || replay === undefined || replay === ""
            ? undefined
            : reachable(replay, this.#base.hostname),
        topic: source.topic ?? "",
      });
    }
    return out;
  }

  /** Only a vLLM in development mode (`VLLM_SERVER_DEV_MODE=1`) tells; nothing depends on it. */
  async #limits(): Promise<Pick<EngineFacts, "stepTokensMax" | "runningRequestsMax">> {
    const info = await this.#json("/server_info?config_format=json", ServerInfo).catch(
      () => undefined,
    );
    const scheduler = info?.vllm_config.scheduler_config;
    return {
      stepTokensMax: scheduler?.max_num_batched_tokens ?? 0,
      runningRequestsMax: scheduler?.max_num_seqs ?? 0,
    };
  }

  async #json<T>(path: string, schema: z.ZodType<T>): Promise<T> {
    const answer = await this.#get(path, jsonBytesMax);
    if (answer.status !== 200) throw new Error(`${path} answered ${String(answer.status)}`);
    const parsed = schema.safeParse(JSON.parse(answer.text));
    if (!parsed.success) throw new Error(`${path}: ${z.prettifyError(parsed.error)}`);
    return parsed.data;
  }

  async #get(path: string, bytesMax: number): Promise<{ status: number; text: string }> {
    const response = await request(new URL(path, this.#base), {
      dispatcher: this.#agent,
      headersTimeout: timeoutMs,
      bodyTimeout: timeoutMs,
      signal: AbortSignal.timeout(timeoutMs),
    });
    const parts: Buffer[] = [];
    let size = 0;
    for await (const part of response.body as AsyncIterable<Buffer>) {
      size += part.length;
      if (size > bytesMax) throw new Error(`${path} answered more than ${String(bytesMax)} bytes`);
      parts.push(part);
    }
    return { status: response.statusCode, text: Buffer.concat(parts).toString("utf8") };
  }
}

/** An engine binds wildcards; from here it is reached through its own host. */
export function reachable(endpoint: string, engineHost: string): string {
  return endpoint.replace(/^tcp:\/\/(?:\*|0\.0\.0\.0|\[::\]|::)(?=:)/, `tcp://${engineHost}`);
}

function failed(why: string): Probe {
  return { kind: "failed", why };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function isRefused(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if ("code" in error && error.code === "ECONNREFUSED") return true;
  if (error instanceof AggregateError) return error.errors.every(isRefused);
  return error.cause !== undefined && isRefused(error.cause);
}
