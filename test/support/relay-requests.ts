import { createHash, createHmac } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { request as httpRequest, type IncomingHttpHeaders } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { RelayConfig } from "../../services/relay/config.ts";
import type { LegNotice } from "../../services/relay/core/topology/leg-notices.ts";
import type { Placer } from "../../services/relay/edge/placer.ts";
import { startRelay, type RunningRelay } from "../../services/relay/edge/relay.ts";
import type {
  Placement,
  PlacementLeg,
  RelayEngine,
} from "../../services/shared/core/placement-token/placement.ts";
import { signPlacement } from "../../services/shared/core/placement-token/placement-token.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import type { Tracing } from "../../services/shared/edge/tracing.ts";
import { createKeysFile } from "../../services/shared/edge/keys.ts";

/** A relay with keys of its own, and what it told of legs. */
export interface TestRelay {
  readonly relay: RunningRelay;
  readonly notices: LegNotice[];
  readonly keysFile: string;
  /** Signs a placement for a body, with the newest key. */
  sign(body: string | Uint8Array, over: Partial<Placement>): string;
  metrics(): Promise<string>;
  stop(): Promise<void>;
}

let decisions = 0;

/** Starts a relay on free ports. */
export async function startTestRelay(
  options: {
    readonly settings?: Record<string, unknown>;
    readonly placer?: Placer;
    readonly keysFile?: string;
    readonly tracing?: Tracing;
  } = {},
): Promise<TestRelay> {
  const folder = mkdtempSync(join(tmpdir(), "kvmesh-relay-"));
  const keysFile = options.keysFile ?? join(folder, "mesh.keys");
  if (options.keysFile === undefined) createKeysFile(keysFile);
  const keys = JSON.parse(readFileSync(keysFile, "utf8")) as {
    placement: { id: string; key: string }[];
  };
  const [newest] = keys.placement;
  const notices: LegNotice[] = [];
  const config = RelayConfig.parse({
    logLevel: "silent",
    h2Port: 0,
    httpPort: 0,
    metricsPort: 0,
    keysFile,
    drainMsMax: 1_500,
    routers: { list: [] },
    ...options.settings,
  });
  const relay = await startRelay(config, {
    log: pino({ level: "silent" }),
    clock: realClock,
    random: new SeededRandom(1),
    ...(options.placer === undefined ? {} : { placer: options.placer }),
    ...(options.tracing === undefined ? {} : { tracing: options.tracing }),
    onNotice: (notice) => notices.push(notice),
  });
  return {
    relay,
    notices,
    keysFile,
    sign: (body, over) =>
      signPlacement(placementOf(body, over), {
        id: newest?.id ?? "",
        mac: (message) =>
          createHmac("sha256", Buffer.from(newest?.key ?? "", "hex"))
            .update(message)
            .digest(),
      }),
    metrics: async () => {
      const response = await fetch(`http://127.0.0.1:${String(relay.metricsPort)}/metrics`);
      return response.text();
    },
    stop: async () => {
      await relay.stop("test");
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** A leg at an engine. */
export function legAt(
  address: string,
  role: PlacementLeg["role"],
  engine: RelayEngine = "vllm",
  over: Partial<PlacementLeg> = {},
): PlacementLeg {
  return {
    role,
    workerId: `w-${address}`,
    address,
    workerStartMs: 1,
    engineLife: 1,
    engine,
    bootstrap: engine === "sglang" && role === "prefill" ? "127.0.0.1:8998" : "",
    ...over,
  };
}

function placementOf(body: string | Uint8Array, over: Partial<Placement>): Placement {
  const issuedUnixMs = Date.now();
  return {
    decisionId: `router-0.1.${String(++decisions)}`,
    router: "router-0",
    legs: [],
    bodySha256: Uint8Array.from(createHash("sha256").update(body).digest()),
    model: "m",
    pool: "default",
    tenant: "",
    salted: false,
    forecast: {
      promptTokens: 100,
      cachedTokens: 0,
      prefillMs: 1,
      transferMs: 1,
      transferBytes: 1,
      ttftMs: 2,
      itlMs: 1,
    },
    traceparent: "",
    issuedUnixMs,
    expiresUnixMs: issuedUnixMs + 20_000,
    ...over,
  };
}

/** A whole answer. */
export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  /** Whether it broke off. */
  readonly broken: boolean;
}

/** Posts a body over HTTP/1.1 and reads the whole answer. `onText` sees it grow and may leave. */
export function post(
  port: number,
  path: string,
  body: string,
  headers: Record<string, string>,
  onText?: (text: string, leave: () => void) => void,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const outgoing = httpRequest(
      {
        host: "127.0.0.1",
        port,
        path,
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        agent: false,
      },
      (response) => {
        const parts: Buffer[] = [];
        const answer = (broken: boolean): void => {
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            text: Buffer.concat(parts).toString(),
            broken,
          });
        };
        response.on("data", (part: Buffer) => {
          parts.push(part);
          onText?.(Buffer.concat(parts).toString(), () => {
            outgoing.destroy();
            answer(true);
          });
        });
        response.on("end", () => {
          answer(false);
        });
        response.on("error", () => {
          answer(true);
        });
      },
    );
    outgoing.on("error", reject);
    outgoing.end(body);
  });
}

/** The chunks of a stream in the OpenAI shape, and whether `[DONE]` came last. */
export function readStream(text: string): {
  readonly chunks: readonly Record<string, unknown>[];
  readonly done: boolean;
  readonly text: string;
  readonly finish: readonly unknown[];
  readonly ids: readonly string[];
} {
  const chunks: Record<string, unknown>[] = [];
  const ids: string[] = [];
  let done = false;
  for (const event of text.split("\n\n")) {
    for (const line of event.split("\n")) {
      if (line.startsWith("id: ")) ids.push(line.slice(4));
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6);
      if (data === "[DONE]") done = true;
      else chunks.push(JSON.parse(data) as Record<string, unknown>);
    }
  }
  const choices = chunks.flatMap((chunk) => (chunk["choices"] ?? []) as Record<string, unknown>[]);
  return {
    chunks,
    done,
    ids,
    text: choices
      .map((choice) => {
        const { text: piece, delta } = choice as { text?: string; delta?: { content?: string } };
        return piece ?? delta?.content ?? "";
      })
      .join(""),
    finish: choices.flatMap((choice) =>
      choice["finish_reason"] === null || choice["finish_reason"] === undefined
        ? []
        : [choice["finish_reason"]],
    ),
  };
}
