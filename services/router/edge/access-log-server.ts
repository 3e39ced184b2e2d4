import type { ServerReadableStream, sendUnaryData } from "@grpc/grpc-js";
import type {
  HTTPAccessLogEntry,
  ResponseFlags,
} from "../../shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import type { Address } from "../../shared/gen/envoy/config/core/v3/address.ts";
import type {
  AccessLogServiceServer,
  StreamAccessLogsMessage,
  StreamAccessLogsResponse,
} from "../../shared/gen/envoy/service/accesslog/v3/als.ts";
import type { ServedRecord } from "../core/router-core.ts";

/** One request as Envoy saw it, read from an access-log record. */
export interface AccessRecord extends ServedRecord {
  /** Empty when the request carries no decision. */
  readonly decisionId: string;
  readonly requestId: string;
  /** Context of the route span; empty when not traced. */
  readonly traceparent: string;
  readonly predictedTtftMs: number;
  readonly workerId: string;
  /** Endpoints picked, first choice first. */
  readonly picked: readonly string[];
  readonly cluster: string;
  readonly codeDetails: string;
  /** Wall time at which Envoy got the request, µs. */
  readonly startUnixUs: number;
  /** From the request's first byte: its last byte, first byte to the engine, response headers; ms; 0 when it never came. */
  readonly uploadMs: number;
  readonly upstreamStartMs: number;
  readonly responseHeadersMs: number;
}

interface Duration {
  readonly seconds: bigint;
  readonly nanos: number;
}

function durationMs(duration: Duration | undefined): number {
  return duration === undefined ? 0 : Number(duration.seconds) * 1_000 + duration.nanos / 1_000_000;
}

function addressText(address: Address | undefined): string {
  const socket = address?.address;
  if (socket?.$case !== "socketAddress") return "";
  const { address: host, portSpecifier } = socket.value;
  const port = portSpecifier?.$case === "portValue" ? portSpecifier.value : 0;
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Envoy's short names of the response flags that occur here. */
const flagNames: readonly (readonly [keyof ResponseFlags, string])[] = [
  ["noHealthyUpstream", "UH"],
  ["upstreamRequestTimeout", "UT"],
  ["localReset", "LR"],
  ["upstreamRemoteReset", "UR"],
  ["upstreamConnectionFailure", "UF"],
  ["upstreamConnectionTermination", "UC"],
  ["upstreamOverflow", "UO"],
  ["noRouteFound", "NR"],
  ["downstreamConnectionTermination", "DC"],
  ["downstreamRemoteReset", "DR"],
  ["upstreamRetryLimitExceeded", "URX"],
  ["streamIdleTimeout", "SI"],
  ["downstreamProtocolError", "DPE"],
  ["upstreamProtocolError", "UPE"],
  ["noClusterFound", "NC"],
  ["overloadManager", "OM"],
];

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** Reads one record; absent parts become empty or 0. */
export function readAccessRecord(entry: HTTPAccessLogEntry): AccessRecord {
  const { commonProperties: common, request, response } = entry;
  const metadata = common?.metadata?.filterMetadata;
  const mesh = metadata?.["kvmesh"];
  const picked = textOf(metadata?.["envoy.lb"]?.["x-gateway-destination-endpoint"]);
  const ttftUs = Number(common?.customTags["ttft_us"]);
  const start = common?.startTime;
  const flags = common?.responseFlags;
  return {
    decisionId: textOf(mesh?.["decision"]),
    traceparent: textOf(mesh?.["traceparent"]),
    predictedTtftMs: Number(textOf(mesh?.["predicted_ttft_ms"])) || 0,
    workerId: textOf(mesh?.["worker"]),
    requestId: request?.requestId ?? "",
    picked: picked === "" ? [] : picked.split(","),
    cluster: common?.upstreamCluster ?? "",
    codeDetails: response?.responseCodeDetails ?? "",
    servedEndpoint: addressText(common?.upstreamRemoteAddress),
    status: response?.responseCode ?? 0,
    responseFlags:
      flags === undefined
        ? ""
        : flagNames
            .filter(([key]) => flags[key])
            .map(([, n]) => n)
            .join(","),
    attempts: common?.upstreamRequestAttemptCount ?? 0,
    responseBytes: Number(response?.responseBodyBytes ?? 0n),
    ttftMs: Number.isFinite(ttftUs) ? ttftUs / 1_000 : 0,
    durationMs: durationMs(common?.duration),
    startUnixUs: start === undefined ? 0 : start.getTime() * 1_000,
    uploadMs: durationMs(common?.timeToLastRxByte),
    upstreamStartMs: durationMs(common?.timeToFirstUpstreamTxByte),
    responseHeadersMs: durationMs(common?.timeToFirstUpstreamRxByte),
  };
}

/** Envoy's gRPC access log: hands every record to `onRecord`. */
export function createAccessLogService(
  onRecord: (record: AccessRecord) => void,
): AccessLogServiceServer {
  return {
    streamAccessLogs: (
      call: ServerReadableStream<StreamAccessLogsMessage, StreamAccessLogsResponse>,
      callback: sendUnaryData<StreamAccessLogsResponse>,
    ) => {
      call.on("data", (message: StreamAccessLogsMessage) => {
        if (message.logEntries?.$case !== "httpLogs") return;
        for (const entry of message.logEntries.value.logEntry) onRecord(readAccessRecord(entry));
      });
      call.on("end", () => {
        callback(null, {});
      });
      // Envoy breaks the stream when it goes away; it opens another one when it is back.
      call.on("error", () => undefined);
    },
  };
}
