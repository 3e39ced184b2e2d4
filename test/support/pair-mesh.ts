import { connect, type ClientHttp2Session } from "node:http2";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { credentials } from "@grpc/grpc-js";
import { pino } from "pino";
import { StateFolder } from "../../services/cli/edge/up/state-folder.ts";
import type { ManagedProcess } from "../../services/cli/edge/up/launcher.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { createChannelCredentials } from "../../services/shared/edge/grpc-client.ts";
import {
  AccessLogCommon,
  HTTPAccessLogEntry,
  HTTPResponseProperties,
} from "../../services/shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import { AccessLogServiceClient } from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import {
  ExternalProcessorClient,
  type ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import {
  RouterClient,
  type Decision,
  type ExplainResponse,
  type PlaceResponse,
} from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import {
  defaultTokenizerDir,
  loadEngineModel,
  type EngineModel,
} from "../../services/simulator/edge/engine-process.ts";
import { WorkerConfig } from "../../services/worker/config.ts";
import { startWorker, type RunningWorker } from "../../services/worker/edge/worker.ts";
import { startPairEngine, type Engine } from "../contract/engine-pair.ts";
import { startTestRelay, type TestRelay } from "./relay-requests.ts";
import { playPeer, sendBody, sendHeaders } from "./router-ext-proc.ts";
import { serviceProcess } from "./service-process.ts";
import { tokenizerCache } from "./test-cache.ts";

type Role = "both" | "prefill" | "decode";

/** One engine with its worker. */
export interface MeshEngine {
  readonly workerId: string;
  readonly engine: Engine;
  readonly worker: RunningWorker;
}

/** What a router said to a request. */
export interface Routed {
  readonly headers: Readonly<Record<string, string>>;
  readonly metadata: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** Of an answer that the router gave itself; 0 and empty when it named an endpoint. */
  readonly status: number;
  readonly body: string;
}

/** What a request came to. */
export interface Served {
  readonly routed: Routed;
  readonly status: number;
  readonly text: string;
}

/** Routers as processes, engines, workers and a relay in this one, and this test in the place of the proxy. */
export class PairMesh {
  readonly routers: ManagedProcess[] = [];
  readonly engines: MeshEngine[] = [];
  readonly relays: TestRelay[] = [];
  readonly #folder = mkdtempSync(join(tmpdir(), "kvmesh-pairs-"));
  readonly #state: StateFolder;
  readonly #keysFile: string;
  readonly #model: EngineModel;
  readonly #sessions = new Map<string, ClientHttp2Session>();

  private constructor(model: EngineModel) {
    this.#model = model;
    this.#state = new StateFolder(this.#folder);
    this.#keysFile = this.#state.prepare("");
  }

  /** An empty mesh with keys. */
  static async create(): Promise<PairMesh> {
    return new PairMesh(await loadEngineModel("", tokenizerCache));
  }

  /** Starts a router; `controlPort` only where others must know it before. */
  async addRouter(
    settings: Record<string, unknown> = {},
    name = `router-${String(this.routers.length)}`,
  ): Promise<ManagedProcess> {
    const router = serviceProcess(this.#state, {
      name,
      service: "router",
      settings: {
        instance: name,
        hotPort: 0,
        controlPort: 0,
        httpPort: 0,
        keysFile: this.#keysFile,
        drainServeMs: 0,
        peerWaitMs: 500,
        cacheFolder: tokenizerCache,
        logLevel: "debug",
        ...settings,
      },
    });
    await router.start();
    this.routers.push(router);
    return router;
  }

  #controls(): string[] {
    return this.routers.map(({ ports }) => `127.0.0.1:${String(ports["control"])}`);
  }

  /** Starts an engine of a role with its worker, and waits until all routers have it. */
  async addEngine(
    role: Role,
    over: { engine?: object; worker?: object } = {},
  ): Promise<MeshEngine> {
    const workerId = `${role.charAt(0)}${String(this.engines.length)}`;
    const engine = await startPairEngine(this.#model, {
      instance: workerId,
      role,
      contextTokensMax: 8_192,
      kvTokens: 16 * 4_000,
      speedup: 4,
      ...over.engine,
    });
    const worker = await startWorker(
      WorkerConfig.parse({
        workerId,
        httpPort: 0,
        logLevel: "silent",
        keysFile: this.#keysFile,
        engine: {
          url: engine.url,
          role,
          modelDir: defaultTokenizerDir(),
          kvTransfer: "NixlConnector",
          kvBytesPerToken: 64,
          ...over.worker,
        },
        routers: { list: this.#controls() },
      }),
      {
        log: pino({ level: "silent" }),
        clock: realClock,
        random: new SeededRandom(this.engines.length + 1),
        workerStartMs: Date.now(),
      },
    );
    const added = { workerId, engine, worker };
    this.engines.push(added);
    for (let i = 0; i < this.routers.length; i++) {
      await eventually(async () => {
        const ready = await this.metric("kvmesh_router_members", 'state="ready"', i);
        if (ready !== this.engines.length) return false;
        // Nothing is placed where nobody answers.
        return role === "prefill" || this.#readsPrompts(i);
      });
    }
    return added;
  }

  /** Whether a router has the model's files, so that it places by tokens. */
  async #readsPrompts(router: number): Promise<boolean> {
    const json = Buffer.from(JSON.stringify({ model: "tiny", prompt: "hello" }));
    const { decision } = await this.call<PlaceResponse>(router, (client, done) => {
      const prompt = { $case: "body", value: { path: "/v1/completions", json } } as const;
      const request = { requestId: "", prompt, subset: [], dryRun: true, excludedWorkerIds: [] };
      client.place(request, done);
    }).catch(() => ({ decision: undefined }));
    return decision?.loadOnlyReason === "";
  }

  /** Starts a relay and waits until all routers have it. */
  async addRelay(): Promise<TestRelay> {
    const relay = await startTestRelay({
      keysFile: this.#keysFile,
      settings: {
        instance: `relay-${String(this.relays.length)}`,
        routers: { list: this.#controls() },
      },
    });
    this.relays.push(relay);
    for (let i = 0; i < this.routers.length; i++) {
      await eventually(
        async () =>
          (await this.metric("kvmesh_router_relays", 'state="attached"', i)) === this.relays.length,
      );
    }
    return relay;
  }

  /** Sum of a metric's values with these labels. */
  async metric(name: string, labels = "", router = 0): Promise<number> {
    const port = String(this.routers[router]?.ports["http"]);
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    return text
      .split("\n")
      .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
      .filter((line) => line.includes(labels))
      .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
  }

  /** Asks a router where a request goes, as the proxy would. */
  async route(
    body: string,
    of: { path?: string; requestId?: string; router?: number; headers?: object } = {},
  ): Promise<Routed> {
    const { path = "/v1/completions", requestId = "req-1", router = 0 } = of;
    const hot = String(this.routers[router]?.ports["hot"]);
    const client = new ExternalProcessorClient(`127.0.0.1:${hot}`, credentials.createInsecure());
    try {
      const headers = { ":path": path, "x-request-id": requestId, ...of.headers };
      const { raw } = await playPeer(client, [
        sendHeaders("buffered", { headers }),
        { do: "await", answers: 1 },
        sendBody(body),
        { do: "await", answers: 2 },
      ]);
      return readRouted(raw);
    } finally {
      client.close();
    }
  }

  /** Routes a request, sends it where the router said, and tells the access log of its end. */
  async serve(
    body: string,
    of: {
      path?: string;
      requestId?: string;
      router?: number;
      /** Which router hears of the end; nobody when −1. */
      logTo?: number;
      /** Goes away when so much of the answer has come. */
      leaveAt?: number;
    } = {},
  ): Promise<Served> {
    const startedAt = Date.now();
    const routed = await this.route(body, of);
    if (routed.status !== 0)
      throw new Error(`refused with ${String(routed.status)}: ${routed.body}`);
    const [endpoint = ""] = (routed.headers["x-gateway-destination-endpoint"] ?? "").split(",");
    const isRelay = routed.headers["x-kvmesh-pool"] === "relays";
    const path = of.path ?? "/v1/completions";
    const headers: Record<string, string> = {
      "content-type": "application/json",
      "x-request-id": of.requestId ?? "req-1",
    };
    const token = routed.headers["x-kvmesh-placement"];
    if (token !== undefined) headers["x-kvmesh-placement"] = token;
    const answer = isRelay
      ? await this.#overHttp2(endpoint, path, headers, body, of.leaveAt)
      : await fetch(`http://${endpoint}${path}`, { method: "POST", headers, body }).then(
          async (response) => ({
            status: response.status,
            text: await response.text(),
            ttftMs: Date.now() - startedAt,
          }),
        );
    const logTo = of.logTo ?? of.router ?? 0;
    if (logTo >= 0) {
      await this.#log(logTo, {
        routed,
        endpoint,
        status: answer.status,
        ttftMs: answer.ttftMs,
        durationMs: Date.now() - startedAt,
      });
    }
    return { routed, status: answer.status, text: answer.text };
  }

  /** A decision with all that is known of it. */
  explain(key: ExplainKey, router = 0): Promise<Decision> {
    return this.call<ExplainResponse>(router, (client, done) => {
      client.explain({ key, whatIfWeights: {}, localOnly: false }, done);
    }).then(({ decision }) => {
      if (decision === undefined) throw new Error("explained nothing");
      return decision;
    });
  }

  /** One call of a router's own service. */
  call<T>(
    router: number,
    make: (client: RouterClient, done: (error: Error | null, answer?: T) => void) => void,
  ): Promise<T> {
    const control = this.#controls()[router] ?? "";
    const client = new RouterClient(control, createChannelCredentials());
    return new Promise<T>((resolve, reject) => {
      make(client, (error, answer) => {
        client.close();
        if (error !== null || answer === undefined) reject(error ?? new Error("no answer"));
        else resolve(answer);
      });
    });
  }

  /** Log of a router, for failures. */
  logOf(router = 0): string {
    return readFileSync(this.routers[router]?.logFile ?? "", "utf8");
  }

  async stop(): Promise<void> {
    for (const session of this.#sessions.values()) session.destroy();
    for (const relay of this.relays) await relay.stop();
    for (const { worker } of this.engines) await worker.stop("test");
    for (const router of this.routers) await router.stop(5_000);
    for (const { engine } of this.engines) await engine.running.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #overHttp2(
    endpoint: string,
    path: string,
    headers: Readonly<Record<string, string>>,
    body: string,
    leaveAt = Infinity,
  ): Promise<{ status: number; text: string; ttftMs: number }> {
    let session = this.#sessions.get(endpoint);
    if (session === undefined) {
      session = connect(`http://${endpoint}`);
      session.on("error", () => undefined);
      this.#sessions.set(endpoint, session);
    }
    const startedAt = Date.now();
    const stream = session.request({ ...headers, ":method": "POST", ":path": path });
    return new Promise((resolve, reject) => {
      let status = 0;
      let text = "";
      let ttftMs = 0;
      stream.on("response", (fields) => {
        status = Number(fields[":status"]);
      });
      stream.on("data", (chunk: Buffer) => {
        if (text === "") ttftMs = Date.now() - startedAt;
        text += chunk.toString();
        if (text.length >= leaveAt) {
          stream.close();
          resolve({ status, text, ttftMs });
        }
      });
      stream.on("end", () => {
        resolve({ status, text, ttftMs });
      });
      stream.on("error", reject);
      stream.end(body);
    });
  }

  #log(
    router: number,
    of: { routed: Routed; endpoint: string; status: number; ttftMs: number; durationMs: number },
  ): Promise<void> {
    const client = new AccessLogServiceClient(
      `127.0.0.1:${String(this.routers[router]?.ports["hot"])}`,
      createChannelCredentials(),
    );
    const { routed, endpoint, status, ttftMs, durationMs } = of;
    const [host = "", port = "0"] = endpoint.split(":");
    const empty = HTTPAccessLogEntry.decode(new Uint8Array(0));
    const entry: HTTPAccessLogEntry = {
      ...empty,
      commonProperties: {
        ...AccessLogCommon.decode(new Uint8Array(0)),
        metadata: { filterMetadata: routed.metadata, typedFilterMetadata: {} },
        upstreamCluster: routed.headers["x-kvmesh-pool"] ?? "",
        upstreamRequestAttemptCount: 1,
        upstreamRemoteAddress: {
          address: {
            $case: "socketAddress",
            value: {
              protocol: 0,
              address: host,
              portSpecifier: { $case: "portValue", value: Number(port) },
            },
          },
        },
        customTags: { ttft_us: String(ttftMs * 1_000) },
        duration: {
          seconds: BigInt(Math.floor(durationMs / 1_000)),
          nanos: (durationMs % 1_000) * 1e6,
        },
      },
      response: {
        ...HTTPResponseProperties.decode(new Uint8Array(0)),
        responseCode: status,
      },
    };
    return new Promise((resolve, reject) => {
      const call = client.streamAccessLogs((error) => {
        client.close();
        if (error === null) resolve();
        else reject(error);
      });
      const logEntries = { $case: "httpLogs" as const, value: { logEntry: [entry] } };
      call.write({ identifier: undefined, logEntries }, () => {
        call.end();
      });
    });
  }
}

type ExplainKey = NonNullable<Parameters<RouterClient["explain"]>[0]["key"]>;

function readRouted(raw: readonly ProcessingResponse[]): Routed {
  const answer = raw[raw.length - 1];
  const response = answer?.response;
  const metadata = (answer?.dynamicMetadata ?? {}) as Routed["metadata"];
  if (response?.$case === "immediateResponse") {
    const { status, body } = response.value;
    return { headers: {}, metadata, status: status?.code ?? 0, body: body.toString() };
  }
  const common =
    response?.$case === "requestBody" || response?.$case === "requestHeaders"
      ? response.value.response
      : undefined;
  const headers: Record<string, string> = {};
  for (const { header } of common?.headerMutation?.setHeaders ?? []) {
    if (header !== undefined) headers[header.key] = header.rawValue.toString();
  }
  return { headers, metadata, status: 0, body: "" };
}

/** Waits until something holds. */
export async function eventually(
  holds: () => boolean | Promise<boolean>,
  msMax = 15_000,
): Promise<void> {
  const until = performance.now() + msMax;
  while (!(await holds())) {
    if (performance.now() > until) throw new Error(`not within ${String(msMax)} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
