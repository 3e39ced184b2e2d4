import * as grpc from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { pino } from "pino";
import { realClock } from "../../services/shared/edge/clock.ts";
import {
  AccessLogServiceService,
  type AccessLogServiceServer,
  type StreamAccessLogsMessage,
} from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import { AggregatedDiscoveryServiceService } from "../../services/shared/gen/envoy/service/discovery/v3/ads.ts";
import { EndpointDiscoveryServiceService } from "../../services/shared/gen/envoy/service/endpoint/v3/eds.ts";
import {
  ExternalProcessorService,
  type ExternalProcessorServer,
  type HeaderMutation,
  type ProcessingRequest,
  type ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import type { HTTPAccessLogEntry } from "../../services/shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import type { StatusCode } from "../../services/shared/gen/envoy/type/v3/http_status.ts";
import { Discovery } from "../../services/router/core/discovery/discovery.ts";
import { createAdsService, type AdsService } from "../../services/router/edge/ads-server.ts";

type Answer = NonNullable<ProcessingResponse["response"]>;

/** What a script does with one request. */
export type Verdict =
  | {
      readonly kind: "pick";
      /** `ip:port[,ip:port]`. */
      readonly endpoints: string;
      readonly pool: string;
      readonly decision: string;
    }
  | {
      readonly kind: "immediate";
      readonly status: StatusCode;
      readonly body: string;
      readonly details?: string;
    }
  /** Ends the stream without an answer, as a broken router might. */
  | { readonly kind: "end" }
  /** A gRPC error. */
  | { readonly kind: "fail" }
  /** Never answers. */
  | { readonly kind: "hang" };

/** A request as the router saw it. */
export interface SeenRequest {
  readonly headers: ReadonlyMap<string, string>;
  readonly body: Buffer;
  readonly bodyMode: number | undefined;
}

/** A router made of a script: ext_proc, access log, health and the real discovery service on one port. */
export interface ScriptedRouter {
  readonly port: number;
  readonly seen: SeenRequest[];
  readonly records: HTTPAccessLogEntry[];
  /** Raw bytes of each message, by kind, for captures. */
  readonly raw: { readonly kind: string; readonly bytes: Buffer }[];
  readonly ads: AdsService;
  script: (request: SeenRequest) => Verdict;
  setHealth(isServing: boolean): void;
  stop(): Promise<void>;
}

const header = (key: string, value: string): HeaderMutation["setHeaders"][number] => ({
  header: { key, value: "", rawValue: Buffer.from(value) },
  appendAction: 2,
  keepEmptyValue: false,
});

const response = (
  answer: Answer | undefined,
  metadata?: Record<string, unknown>,
): ProcessingResponse => ({
  response: answer,
  dynamicMetadata: metadata,
  modeOverride: undefined,
  overrideMessageTimeout: undefined,
  requestDrain: false,
});

const common = (headerMutation?: HeaderMutation, streamed?: Buffer) => ({
  response: {
    status: 0 as const,
    headerMutation,
    bodyMutation:
      streamed === undefined
        ? undefined
        : {
            mutation: {
              $case: "streamedResponse" as const,
              value: {
                body: streamed,
                endOfStream: true,
                endOfStreamWithoutMessage: false,
                grpcMessageCompressed: false,
              },
            },
          },
    trailers: undefined,
    clearRouteCache: headerMutation !== undefined,
  },
});

/** Wraps a method so that the raw bytes of its requests are kept. */
function capturing<T>(
  method: grpc.MethodDefinition<T, unknown>,
  raw: { kind: string; bytes: Buffer }[],
): void {
  const parse = method.requestDeserialize;
  method.requestDeserialize = (bytes) => {
    raw.push({ kind: method.path, bytes: Buffer.from(bytes) });
    return parse(bytes);
  };
}

const copyService = <S extends grpc.ServiceDefinition>(service: S): S =>
  Object.fromEntries(Object.entries(service).map(([name, method]) => [name, { ...method }])) as S;

/** Starts one on a free port of loopback. */
export async function startScriptedRouter(options: {
  readonly pools: readonly string[];
  readonly epoch?: string;
  readonly port?: number;
}): Promise<ScriptedRouter> {
  const seen: SeenRequest[] = [];
  const records: HTTPAccessLogEntry[] = [];
  const raw: { kind: string; bytes: Buffer }[] = [];
  let script: ScriptedRouter["script"] = () => ({ kind: "end" });

  const decide = (
    call: Parameters<ExternalProcessorServer["process"]>[0],
    request: SeenRequest,
  ) => {
    seen.push(request);
    const verdict = script(request);
    const isDuplex = request.bodyMode === 4;
    switch (verdict.kind) {
      case "pick": {
        const mutation = {
          setHeaders: [
            header("x-kvmesh-pool", verdict.pool),
            header("x-gateway-destination-endpoint", verdict.endpoints),
          ],
          removeHeaders: [],
        };
        const metadata = {
          "envoy.lb": { "x-gateway-destination-endpoint": verdict.endpoints },
          kvmesh: { decision: verdict.decision },
        };
        if (isDuplex) {
          call.write(response({ $case: "requestHeaders", value: common(mutation) }, metadata));
          if (request.body.length > 0) {
            call.write(response({ $case: "requestBody", value: common(undefined, request.body) }));
          }
        } else if (request.body.length > 0) {
          call.write(response({ $case: "requestBody", value: common(mutation) }, metadata));
        } else {
          call.write(response({ $case: "requestHeaders", value: common(mutation) }, metadata));
        }
        call.end();
        return;
      }
      case "immediate":
        call.write(
          response({
            $case: "immediateResponse",
            value: {
              status: { code: verdict.status },
              headers: {
                setHeaders: [
                  header("content-type", "application/json"),
                  header("retry-after", "7"),
                ],
                removeHeaders: [],
              },
              body: Buffer.from(verdict.body),
              grpcStatus: undefined,
              details: verdict.details ?? "",
            },
          }),
        );
        call.end();
        return;
      case "end":
        call.end();
        return;
      case "fail":
        call.emit("error", { code: grpc.status.INTERNAL, details: "scripted" });
        return;
      case "hang":
        return;
    }
  };

  const process: ExternalProcessorServer["process"] = (call) => {
    let headers = new Map<string, string>();
    let bodyMode: number | undefined;
    const pieces: Buffer[] = [];
    let isDone = false;
    const finish = (body: Buffer): void => {
      if (isDone) return;
      isDone = true;
      decide(call, { headers, body, bodyMode });
    };
    call.on("data", ({ request, protocolConfig }: ProcessingRequest) => {
      bodyMode = protocolConfig?.requestBodyMode ?? bodyMode;
      if (request?.$case === "requestHeaders") {
        headers = new Map(
          (request.value.headers?.headers ?? []).map(({ key, value, rawValue }) => [
            key,
            rawValue.length > 0 ? rawValue.toString("latin1") : value,
          ]),
        );
        if (request.value.endOfStream) finish(Buffer.alloc(0));
        else if (bodyMode !== 4) call.write(response({ $case: "requestHeaders", value: common() }));
      } else if (request?.$case === "requestBody") {
        pieces.push(request.value.body);
        if (bodyMode !== 4 || request.value.endOfStream) finish(Buffer.concat(pieces));
      }
    });
    call.on("error", () => undefined);
    call.on("end", () => call.end());
  };

  const accessLog: AccessLogServiceServer = {
    streamAccessLogs: (call, callback) => {
      call.on("data", ({ logEntries }: StreamAccessLogsMessage) => {
        if (logEntries?.$case === "httpLogs") records.push(...logEntries.value.logEntry);
      });
      call.on("error", () => undefined);
      call.on("end", () => callback(null, {}));
    },
  };

  const discovery = new Discovery({
    epoch: options.epoch ?? "1",
    startedAt: realClock.now(),
    graceMs: 0,
    pools: options.pools,
    poolsMax: 16,
  });
  const ads = createAdsService({
    discovery,
    clock: realClock,
    log: pino({ level: "silent" }),
    metrics: {
      streams: () => undefined,
      request: () => undefined,
      pushed: () => undefined,
      held: () => undefined,
    },
    identifier: "scripted",
  });

  const server = new grpc.Server({ "grpc.max_receive_message_length": -1 });
  const health = new HealthImplementation({ "": "SERVING" });
  health.addToServer(server);
  const extProc = copyService(ExternalProcessorService);
  const logs = copyService(AccessLogServiceService);
  const discoveryService = copyService(AggregatedDiscoveryServiceService);
  capturing(extProc.process as grpc.MethodDefinition<unknown, unknown>, raw);
  capturing(logs.streamAccessLogs as grpc.MethodDefinition<unknown, unknown>, raw);
  capturing(
    discoveryService.streamAggregatedResources as grpc.MethodDefinition<unknown, unknown>,
    raw,
  );
  server.addService(extProc, { process });
  server.addService(logs, { ...accessLog });
  server.addService(discoveryService, { ...ads.service });
  server.addService(EndpointDiscoveryServiceService, { ...ads.endpointService });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(
      `127.0.0.1:${(options.port ?? 0).toString()}`,
      grpc.ServerCredentials.createInsecure(),
      (error, bound) => {
        if (error === null) resolve(bound);
        else reject(error);
      },
    );
  });
  return {
    port,
    seen,
    records,
    raw,
    ads,
    get script() {
      return script;
    },
    set script(next) {
      script = next;
    },
    setHealth: (isServing) => health.setStatus("", isServing ? "SERVING" : "NOT_SERVING"),
    stop: () => {
      ads.close();
      server.forceShutdown();
      return Promise.resolve();
    },
  };
}
