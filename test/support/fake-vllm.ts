import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { encode } from "@msgpack/msgpack";
import { Publisher, Router } from "zeromq";

/** Facts that the fake tells over HTTP. */
export interface FakeVllmFacts {
  readonly models: readonly string[];
  readonly blockSizeTokens: number;
  readonly blockCount: number;
  readonly prefixCaching: boolean;
  readonly contextTokensMax: number;
}

const defaultFacts: FakeVllmFacts = {
  models: ["tiny"],
  blockSizeTokens: 16,
  blockCount: 1_000,
  prefixCaching: true,
  contextTokensMax: 4_096,
};

/** One event as vLLM ≥ 0.24 writes it: a map. */
export type FakeEvent = Readonly<Record<string, unknown>>;

/**
 * A scripted vLLM for worker tests: the HTTP pages and the event sockets that a worker uses, on free ports
 * of 127.0.0.1. It computes nothing; the test says what it publishes, loses or garbles.
 */
export class FakeVllm {
  readonly facts: FakeVllmFacts;
  /** Value of `process_start_time_seconds`; changed by `restart`. */
  processStartSeconds = 1_700_000_000.25;
  running = 0;
  waiting = 0;
  healthStatus = 200;
  /** Whether the pages exist; when false every request hangs, as with a frozen engine. */
  frozen = false;
  replaysAsked: number[] = [];
  readonly #batches: { readonly seq: number; readonly payload: Uint8Array }[] = [];
  #seq = 0;
  #http: Server | undefined;
  #httpPort = 0;
  #publisher = new Publisher({ linger: 0 });
  #router = new Router({ linger: 0 });
  #eventsEndpoint = "";
  #replayEndpoint = "";

  constructor(facts: Partial<FakeVllmFacts> = {}) {
    this.facts = { ...defaultFacts, ...facts };
  }

  get url(): string {
    return `http://127.0.0.1:${String(this.#httpPort)}`;
  }

  /** Sequence number of the next batch. */
  get nextSeq(): number {
    return this.#seq;
  }

  async start(): Promise<this> {
    await this.#listen(0);
    await this.#publisher.bind("tcp://127.0.0.1:*");
    this.#eventsEndpoint = this.#publisher.lastEndpoint ?? "";
    await this.#router.bind("tcp://127.0.0.1:*");
    this.#replayEndpoint = this.#router.lastEndpoint ?? "";
    void this.#serveReplays(this.#router);
    return this;
  }

  /** Publishes one batch. `lost` keeps it for replay only; `broken` sends other bytes than it keeps. */
  async publish(
    events: readonly FakeEvent[],
    options: { readonly lost?: boolean; readonly broken?: Uint8Array } = {},
  ): Promise<void> {
    const seq = this.#seq++;
    const payload = encode([Date.now() / 1_000, events, 0], { useBigInt64: true });
    this.#batches.push({ seq, payload });
    if (options.lost === true) return;
    await this.#publisher.send(["kv@fake", seqFrame(seq), Buffer.from(options.broken ?? payload)]);
  }

  /** Throws the replay buffer away, as an engine does whose buffer is too short. */
  dropReplayBuffer(): void {
    this.#batches.length = 0;
  }

  /** Stops everything but remembers the ports. */
  async crash(): Promise<void> {
    await this.#closeHttp();
    this.#publisher.close();
    this.#router.close();
  }

  /** Comes back on the same ports as another process with an empty cache. */
  async restart(options: { readonly newStart?: boolean } = {}): Promise<void> {
    if (options.newStart ?? true) this.processStartSeconds += 100;
    this.#seq = 0;
    this.#batches.length = 0;
    this.#publisher = new Publisher({ linger: 0 });
    this.#router = new Router({ linger: 0 });
    await this.#publisher.bind(this.#eventsEndpoint);
    await this.#router.bind(this.#replayEndpoint);
    void this.#serveReplays(this.#router);
    await this.#listen(this.#httpPort);
  }

  /** Begins the event sequence again without closing a socket. */
  restartSequence(): void {
    this.#seq = 0;
    this.#batches.length = 0;
  }

  async close(): Promise<void> {
    await this.crash();
  }

  async #listen(port: number): Promise<void> {
    const server = createServer((request, response) => {
      if (this.frozen) return;
      const page = this.#page(request.url ?? "");
      response.writeHead(page.status);
      response.end(page.text);
    });
    this.#http = server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, "127.0.0.1", resolve);
    });
    this.#httpPort = (server.address() as AddressInfo).port;
  }

  async #closeHttp(): Promise<void> {
    const server = this.#http;
    this.#http = undefined;
    await new Promise<void>((resolve) => {
      if (server === undefined) {
        resolve();
        return;
      }
      server.close(() => {
        resolve();
      });
      server.closeAllConnections();
    });
  }

  #page(path: string): { readonly status: number; readonly text: string } {
    switch (path) {
      case "/health":
        return { status: this.healthStatus, text: "" };
      case "/version":
        return { status: 200, text: JSON.stringify({ version: "0.32.0" }) };
      case "/v1/models":
        return { status: 200, text: JSON.stringify({ object: "list", data: this.#models() }) };
      case "/kv_event_sources":
        return { status: 200, text: JSON.stringify({ "0": this.#source() }) };
      case "/metrics":
        return { status: 200, text: this.#metrics() };
      default:
        return { status: 404, text: '{"detail":"Not Found"}' };
    }
  }

  #models(): unknown[] {
    const max_model_len = this.facts.contextTokensMax;
    return this.facts.models.map((id) => ({ id, object: "model", parent: null, max_model_len }));
  }

  /** Endpoints with the wildcard that an engine binds. */
  #source(): unknown {
    const wild = (endpoint: string): string => endpoint.replace("127.0.0.1", "*");
    return {
      enable_kv_cache_events: true,
      publisher: "zmq",
      endpoint: wild(this.#eventsEndpoint),
      replay_endpoint: wild(this.#replayEndpoint),
      buffer_steps: 10_000,
      topic: "kv@fake",
    };
  }

  #metrics(): string {
    const { blockSizeTokens, blockCount, prefixCaching } = this.facts;
    const labels = 'engine="0",model_name="tiny"';
    return [
      `process_start_time_seconds ${String(this.processStartSeconds)}`,
      "# TYPE vllm:num_requests_running gauge",
      `vllm:num_requests_running{${labels}} ${String(this.running)}.0`,
      `vllm:num_requests_waiting{${labels}} ${String(this.waiting)}.0`,
      `vllm:kv_cache_usage_perc{${labels}} 0.25`,
      `vllm:prompt_tokens_total{${labels}} 1.2e+03`,
      `vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 3.0`,
      `vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 4.0`,
      `vllm:cache_config_info{block_size="${String(blockSizeTokens)}",enable_prefix_caching="${prefixCaching ? "True" : "False"}",engine="0",num_gpu_blocks="${String(blockCount)}"} 1.0`,
      "",
    ].join("\n");
  }

  async #serveReplays(router: Router): Promise<void> {
    try {
      for await (const [identity, , start] of router) {
        if (identity === undefined || start === undefined) continue;
        const from = Number(start.readBigUInt64BE(0));
        this.replaysAsked.push(from);
        for (const { seq, payload } of this.#batches) {
          if (seq < from) continue;
          await router.send([identity, "", "kv@fake", seqFrame(seq), Buffer.from(payload)]);
        }
        await router.send([identity, "", "", Buffer.alloc(8, 0xff), ""]);
      }
    } catch {
      // The socket was closed under the loop by `crash`.
    }
  }
}

function seqFrame(seq: number): Buffer {
  const frame = Buffer.alloc(8);
  frame.writeBigUInt64BE(BigInt(seq));
  return frame;
}

/** A BlockStored event in map form. */
export function storedEvent(options: {
  readonly hashes: readonly bigint[];
  readonly parent?: bigint;
  readonly tokens: readonly number[];
  readonly blockSizeTokens?: number;
  readonly more?: FakeEvent;
}): FakeEvent {
  return {
    type: "BlockStored",
    block_hashes: options.hashes,
    parent_block_hash: options.parent ?? null,
    token_ids: options.tokens,
    block_size: options.blockSizeTokens ?? 16,
    lora_id: null,
    medium: "GPU",
    lora_name: null,
    extra_keys: options.hashes.map(() => null),
    group_idx: 0,
    kv_cache_spec_kind: "full_attention",
    ...options.more,
  };
}

/** A BlockRemoved event in map form. */
export function removedEvent(hashes: readonly bigint[]): FakeEvent {
  return { type: "BlockRemoved", block_hashes: hashes, medium: "GPU", group_idx: 0 };
}

/** An AllBlocksCleared event in map form. */
export const clearedEvent: FakeEvent = { type: "AllBlocksCleared" };
