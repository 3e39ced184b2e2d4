import { createHash } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { pino } from "pino";
import { parseCidr } from "../../services/shared/core/cidr.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { createMetrics, type Metrics } from "../../services/shared/edge/metrics.ts";
import { noTracing } from "../../services/shared/edge/tracing.ts";
import {
  ExternalProcessorClient,
  type HeaderMutation,
  type ProcessingRequest,
  type ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import type { RouterCore } from "../../services/router/core/router-core.ts";
import { Decider } from "../../services/router/edge/decider.ts";
import type { BodyLimits } from "../../services/router/edge/ext-proc/exchange-stream.ts";
import type { HotServerKind } from "../../services/router/edge/hot-server-kinds.ts";
import { createHotServer } from "../../services/router/edge/hot-server.ts";
import { ModelRuntimes } from "../../services/router/edge/model-runtimes.ts";
import { routerMetrics } from "../../services/router/metrics.ts";
import { memberFacts, routerCore } from "./router-builders.ts";

/** Numbers of `ProcessingMode.BodySendMode`. */
export const bodyModes = { none: 0, streamed: 1, buffered: 2, partial: 3, duplex: 4 } as const;

/** A body send mode by name. */
export type BodyModeName = keyof typeof bodyModes;

/** A router's ext_proc service on a real socket, with a core of two workers behind it. */
export interface ExtProcRouter {
  readonly core: RouterCore;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly client: ExternalProcessorClient;
  bodyMemoryBytes(): number;
  /** Value of a counter or gauge with these labels. */
  metric(
    key: keyof typeof routerMetrics,
    labels?: Readonly<Record<string, string>>,
  ): Promise<number>;
  /** Ends everything at once, open calls too. */
  stop(): void;
}

function sha256Hex(file: Uint8Array): string {
  return createHash("sha256").update(file).digest("hex");
}

/** Starts one on a free port of loopback. */
export async function startExtProcRouter(
  limits: Partial<BodyLimits> & {
    readonly duplexFallbacks?: boolean;
    readonly server?: HotServerKind;
    /** Model files that the workers deliver. */
    readonly model?: { readonly tokenizerJson: Uint8Array; readonly chatTemplate: string };
  } = {},
): Promise<ExtProcRouter> {
  const log = pino({ level: "silent" });
  const core = routerCore();
  const runtimes = new ModelRuntimes({
    hashSeed: new Uint8Array(32).fill(3),
    log,
    cacheFolder: "",
  });
  const files =
    limits.model === undefined
      ? []
      : [limits.model.tokenizerJson, Buffer.from(limits.model.chatTemplate)];
  const [tokenizerSha256 = "", chatTemplateSha256 = ""] = files.map(sha256Hex);
  for (const i of [0, 1]) {
    const digests = { tokenizerSha256, chatTemplateSha256, contextTokensMax: 1_000_000 };
    const facts = memberFacts(i, limits.model === undefined ? {} : digests);
    core.admit(facts, i + 1, realClock.now());
    runtimes.learn(facts);
  }
  for (const file of files) runtimes.deliver(sha256Hex(file), file);
  while (!runtimes.settled) await setTimeout(10);
  const { metrics } = createMetrics(routerMetrics);
  const decider = new Decider({
    core,
    runtimes,
    clock: realClock,
    tracing: noTracing,
    metrics,
    defaultPool: "default",
    blockSizeTokens: 16,
    duplexFallbacks: limits.duplexFallbacks ?? false,
    admissionWaitMsMax: 5_000,
    onWaiting: () => undefined,
    onDecision: () => {
      core.takeEffects();
    },
  });
  const bodyBytesMax = limits.bodyBytesMax ?? 64 * 1024 * 1024;
  const bodyMemoryBytesMax = limits.bodyMemoryBytesMax ?? 256 * 1024 * 1024;
  const loopback = parseCidr("127.0.0.0/8");
  const server = createHotServer(limits.server ?? "lean", {
    extProc: {
      decider,
      clock: realClock,
      log,
      metrics,
      limits: { bodyBytesMax, bodyMemoryBytesMax },
    },
    onRecord: () => undefined,
    allowed: loopback === undefined ? [] : [loopback],
    onRefused: () => undefined,
  });
  const port = await server.listen("127.0.0.1", 0);
  const client = new ExternalProcessorClient(
    `127.0.0.1:${port.toString()}`,
    grpc.credentials.createInsecure(),
    { "grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1 },
  );
  return {
    core,
    metrics,
    client,
    bodyMemoryBytes: () => server.bodyMemoryBytes(),
    metric: async (key, labels = {}) => {
      const { values } = await metrics[key].get();
      return values
        .filter((v) =>
          Object.entries(labels).every(
            ([name, value]) => String(v.labels[name as never]) === value,
          ),
        )
        .reduce((sum, v) => sum + v.value, 0);
    },
    stop: () => {
      client.close();
      runtimes.close();
      server.kill();
    },
  };
}

/** One thing that a scripted peer does. */
export type PeerStep =
  | { readonly do: "send"; readonly message: ProcessingRequest }
  /** Waits until so many answers have come in all. */
  | { readonly do: "await"; readonly answers: number }
  | { readonly do: "half_close" }
  | { readonly do: "cancel" };

/** What a scripted peer got. */
export interface PeerOutcome {
  /** One line per answer. */
  readonly answers: readonly string[];
  readonly raw: readonly ProcessingResponse[];
  readonly status: grpc.status;
  readonly details: string;
}

function message(
  request: ProcessingRequest["request"],
  over: Partial<ProcessingRequest> = {},
): PeerStep {
  return {
    do: "send",
    message: {
      request,
      metadataContext: undefined,
      attributes: {},
      observabilityMode: false,
      protocolConfig: undefined,
      ...over,
    },
  };
}

/** Request headers, the first message of a stream; `subset` becomes the subset hint. */
export function sendHeaders(
  mode: BodyModeName | undefined,
  over: {
    readonly endOfStream?: boolean;
    readonly headers?: Readonly<Record<string, string>>;
    readonly subset?: unknown;
  } = {},
): PeerStep {
  const headers = {
    ":method": "POST",
    ":path": "/v1/completions",
    "content-type": "application/json",
    "x-request-id": "req-1",
    ...over.headers,
  };
  return message(
    {
      $case: "requestHeaders",
      value: {
        headers: {
          headers: Object.entries(headers).map(([key, value]) => ({
            key,
            value: "",
            rawValue: Buffer.from(value),
          })),
        },
        endOfStream: over.endOfStream ?? false,
      },
    },
    {
      protocolConfig:
        mode === undefined
          ? undefined
          : {
              requestBodyMode: bodyModes[mode],
              responseBodyMode: 0,
              sendBodyWithoutWaitingForHeaderResponse: false,
            },
      metadataContext:
        over.subset === undefined
          ? undefined
          : {
              filterMetadata: {
                "envoy.lb.subset_hint": { "x-gateway-destination-endpoint-subset": over.subset },
              },
              typedFilterMetadata: {},
            },
    },
  );
}

/** A body message; an object becomes JSON. */
export function sendBody(body: Buffer | string | object, endOfStream = true): PeerStep {
  const bytes = Buffer.isBuffer(body)
    ? body
    : Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
  return message({
    $case: "requestBody",
    value: {
      body: bytes,
      endOfStream,
      endOfStreamWithoutMessage: false,
      grpcMessageCompressed: false,
    },
  });
}

/** Request trailers. */
export const sendTrailers: PeerStep = message({
  $case: "requestTrailers",
  value: { trailers: { headers: [] } },
});

/** Response headers, which a well configured proxy never sends. */
export const sendResponseHeaders: PeerStep = message({
  $case: "responseHeaders",
  value: { headers: { headers: [] }, endOfStream: false },
});

/** A message without content. */
export const sendNothing: PeerStep = message(undefined);

function headersOf(mutation: HeaderMutation | undefined): string {
  return (mutation?.setHeaders ?? [])
    .map(({ header }) => `${header?.key ?? ""}=${header?.rawValue.toString() ?? ""}`)
    .join(" ");
}

/** One answer in a line. */
export function describeAnswer({ response, dynamicMetadata }: ProcessingResponse): string {
  const lb: unknown = (dynamicMetadata?.["envoy.lb"] as Record<string, unknown> | undefined)?.[
    "x-gateway-destination-endpoint"
  ];
  const picked = lb === undefined ? "" : ` picked=${JSON.stringify(lb).replaceAll('"', "")}`;
  switch (response?.$case) {
    case "requestHeaders":
    case "requestBody": {
      const common = response.value.response;
      const mutation = common?.bodyMutation?.mutation;
      const name = response.$case === "requestHeaders" ? "headers" : "body";
      if (mutation?.$case === "streamedResponse") {
        const { body, endOfStream } = mutation.value;
        return `piece ${body.length.toString()}${endOfStream ? " end" : ""}`;
      }
      const set = headersOf(common?.headerMutation);
      return `${name} ${set === "" ? "continue" : set}${picked}`;
    }
    case "requestTrailers":
      return "trailers";
    case "immediateResponse": {
      const { status, body, headers, details } = response.value;
      const shown = (headers?.setHeaders ?? [])
        .filter(({ header }) => header?.key !== "content-type")
        .map(({ header }) => ` ${header?.key ?? ""}=${header?.rawValue.toString() ?? ""}`);
      const { error } = JSON.parse(body.toString()) as { error?: { param?: string | null } };
      const field = typeof error?.param === "string" ? ` field=${error.param}` : "";
      return `immediate ${String(status?.code)} ${details}${field}${shown.join("")}`;
    }
    default:
      return response?.$case ?? "nothing";
  }
}

/** Plays a script against the service and returns what came back when the stream has ended. */
export async function playPeer(
  client: ExternalProcessorClient,
  steps: readonly PeerStep[],
  options: { readonly metadata?: Readonly<Record<string, string>> } = {},
): Promise<PeerOutcome> {
  const metadata = new grpc.Metadata();
  for (const [key, value] of Object.entries(options.metadata ?? {})) metadata.set(key, value);
  const call = client.process(metadata);
  const raw: ProcessingResponse[] = [];
  const state = { ended: false };
  const isOver = (): boolean => state.ended;
  let wake: () => void = () => undefined;
  call.on("data", (response: ProcessingResponse) => {
    raw.push(response);
    wake();
  });
  call.on("error", () => undefined);
  const status = new Promise<grpc.StatusObject>((resolve) => {
    call.on("status", (s) => {
      state.ended = true;
      resolve(s);
      wake();
    });
  });
  for (const step of steps) {
    if (isOver()) break;
    switch (step.do) {
      case "send":
        if (!call.write(step.message)) {
          await new Promise<void>((resolve) => {
            wake = resolve;
            call.once("drain", resolve);
          });
        }
        break;
      case "await":
        while (raw.length < step.answers && !isOver()) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
        break;
      case "half_close":
        call.end();
        break;
      case "cancel":
        call.cancel();
        break;
    }
  }
  const { code, details } = await status;
  return { answers: raw.map(describeAnswer), raw, status: code, details };
}
