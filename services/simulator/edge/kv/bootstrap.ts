import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Clock } from "../../../shared/core/clock.ts";
import { isPort } from "./exact-integer.ts";
import type { PeerAddress } from "./kv-peers.ts";

/** Longest body of a registration. */
const bodyBytesMax = 65_536;
/** An address found is asked for again after this time: SGLang's heartbeat interval, ms. */
const foundMsMax = 5_000;
/** Between two attempts at a bootstrap server that is not ready, ms. */
const retryMs = 100;
/** Bootstrap servers remembered. */
const knownMax = 256;

/** What both sides must have in common. */
export interface PageLayout {
  readonly pageSize: number;
  readonly kvCacheDtype: string;
}

/**
 * SGLang's bootstrap server of a prefill engine (`disaggregation/common/conn.py`, 0.5.15): tells decode engines where the
 * ranks of this engine are. One rank here; 503 until it has registered.
 */
export class BootstrapServer {
  readonly #server: Server;
  readonly #layout: PageLayout;
  #rank: PeerAddress | undefined;
  /** DP rank by room, as registered; there is rank 0 alone. Bounded by forgetting the oldest. */
  readonly #dpRanks = new Map<string, number>();

  constructor(layout: PageLayout) {
    this.#layout = layout;
    this.#server = createServer({ requestTimeout: 10_000 }, (request, response) => {
      this.#serve(request, response).catch(() => {
        send(response, 400, { error: "bad request" });
      });
    });
  }

  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(port, host, () => {
        this.#server.removeListener("error", reject);
        resolve();
      });
    });
    return (this.#server.address() as AddressInfo).port;
  }

  /** The rank of this engine is ready. */
  register(rank: PeerAddress): void {
    this.#rank = rank;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "http://bootstrap");
    switch (`${request.method ?? "GET"} ${url.pathname}`) {
      case "GET /health":
        response.writeHead(200).end("OK");
        return;
      case "GET /route":
        this.#route(url.searchParams, response);
        return;
      case "PUT /route": {
        const body = await readJson(request);
        const { rank_ip: host, rank_port: port } = body;
        if (typeof host !== "string" || !isPort(port)) {
          send(response, 400, { error: "rank_ip and rank_port (1 to 65535) are needed" });
          return;
        }
        this.register({ host, port });
        response.writeHead(200).end("OK");
        return;
      }
      case "POST /register_dp_rank": {
        const body = await readJson(request);
        if (this.#dpRanks.size >= 10_000) {
          const oldest = this.#dpRanks.keys().next().value;
          if (oldest !== undefined) this.#dpRanks.delete(oldest);
        }
        this.#dpRanks.set(String(body["bootstrap_room"]), Number(body["dp_rank"]));
        response.writeHead(200).end("OK");
        return;
      }
      case "POST /query_dp_ranks": {
        const body = await readJson(request);
        const rooms = Array.isArray(body["bootstrap_rooms"]) ? body["bootstrap_rooms"] : [];
        const found = rooms
          .map((room) => [String(room), this.#dpRanks.get(String(room))] as const)
          .filter(([, rank]) => rank !== undefined);
        send(response, 200, Object.fromEntries(found));
        return;
      }
      default:
        send(response, 404, { error: "Not Found" });
    }
  }

  #route(query: URLSearchParams, response: ServerResponse): void {
    const names = ["prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"];
    const values = names.map((name) => Number(query.get(name) ?? Number.NaN));
    if (values.some((value) => !Number.isInteger(value))) {
      response.writeHead(400).end("Missing inputs for bootstrap server.");
    } else if (this.#rank === undefined) {
      response.writeHead(503).end("Prefill server not fully registered yet");
    } else if (values.every((value) => value === -1)) {
      send(response, 200, {
        attn_tp_size: 1,
        attn_cp_size: 1,
        dp_size: 1,
        pp_size: 1,
        page_size: this.#layout.pageSize,
        kv_cache_dtype: this.#layout.kvCacheDtype,
        follow_bootstrap_room: true,
      });
    } else if (values.every((value) => value === 0)) {
      send(response, 200, { rank_ip: this.#rank.host, rank_port: this.#rank.port });
    } else {
      response.writeHead(404).end("Bootstrap info not found");
    }
  }
}

/** The decode side: asks bootstrap servers where prefill ranks are, and remembers it for a heartbeat's time. */
export class BootstrapClient {
  readonly #layout: PageLayout;
  readonly #clock: Clock;
  readonly #waitMsMax: number;
  readonly #known = new Map<
    string,
    { readonly until: number; readonly rank: Promise<PeerAddress> }
  >();

  constructor(options: { layout: PageLayout; clock: Clock; waitMsMax: number }) {
    this.#layout = options.layout;
    this.#clock = options.clock;
    this.#waitMsMax = options.waitMsMax;
  }

  /** Rejects with a reason when the server cannot be reached in time or has another page size or KV type. */
  lookUp(bootstrap: PeerAddress): Promise<PeerAddress> {
    const key = `${bootstrap.host}:${bootstrap.port}`;
    const now = this.#clock.now();
    const known = this.#known.get(key);
    if (known !== undefined && known.until > now) return known.rank;
    if (this.#known.size >= knownMax) this.#known.clear();
    const rank = this.#ask(bootstrap);
    this.#known.set(key, { until: now + foundMsMax, rank });
    rank.catch(() => this.#known.delete(key));
    return rank;
  }

  async #ask(bootstrap: PeerAddress): Promise<PeerAddress> {
    const base = `http://${bootstrap.host}:${bootstrap.port}/route`;
    const query = (rank: number): string =>
      `?prefill_dp_rank=${rank}&prefill_cp_rank=${rank}&target_tp_rank=${rank}&target_pp_rank=${rank}`;
    const info = await this.#get(base + query(-1));
    const { pageSize, kvCacheDtype } = this.#layout;
    if (info["page_size"] !== pageSize || info["kv_cache_dtype"] !== kvCacheDtype) {
      throw new Error(
        `page size or KV type differ: here ${pageSize} ${kvCacheDtype}, there ${JSON.stringify(info)}`,
      );
    }
    const { rank_ip: host, rank_port: port } = await this.#get(base + query(0));
    if (typeof host !== "string" || !isPort(port)) {
      throw new Error("the bootstrap server gave no rank");
    }
    return { host, port };
  }

  async #get(url: string): Promise<Record<string, unknown>> {
    const end = this.#clock.now() + this.#waitMsMax;
    for (;;) {
      const left = Math.max(1, end - this.#clock.now());
      try {
        const response = await fetch(url, { signal: AbortSignal.timeout(Math.ceil(left)) });
        if (response.status === 200) return (await response.json()) as Record<string, unknown>;
        await response.body?.cancel();
        if (response.status !== 503) throw new Fatal(`bootstrap server: ${response.status}`);
      } catch (error) {
        if (error instanceof Fatal) throw error;
      }
      if (this.#clock.now() + retryMs > end) throw new Error("bootstrap server not reachable");
      await this.#clock.sleep(retryMs);
    }
  }
}

/** An answer that asking again does not change. */
class Fatal extends Error {}

async function readJson(request: IncomingMessage): Promise<Record<string, unknown>> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > bodyBytesMax) throw new Error("body too large");
    chunks.push(chunk);
  }
  const parsed = JSON.parse(Buffer.concat(chunks).toString()) as unknown;
  if (typeof parsed !== "object" || parsed === null) throw new Error("no object");
  return parsed as Record<string, unknown>;
}

function send(response: ServerResponse, status: number, body: unknown): void {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
