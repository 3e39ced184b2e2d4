import type { Address } from "../../../shared/gen/envoy/config/core/v3/address.ts";
import type {
  HTTPAccessLogEntry,
  ResponseFlags,
} from "../../../shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import type { ServedRecord } from "../../core/load/request-ends.ts";

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

/** An endpoint as the router names it: `ip:port`, IPv6 in brackets. */
export function endpointText(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

function addressText(address: Address | undefined): string {
  const socket = address?.address;
  if (socket?.$case !== "socketAddress") return "";
  const { address: host, portSpecifier } = socket.value;
  return endpointText(host, portSpecifier?.$case === "portValue" ? portSpecifier.value : 0);
}

/** Envoy's short names of the response flags that occur here, with their field numbers in ResponseFlags. */
export const flagNames: readonly (readonly [keyof ResponseFlags, number, string])[] = [
  ["noHealthyUpstream", 2, "UH"],
  ["upstreamRequestTimeout", 3, "UT"],
  ["localReset", 4, "LR"],
  ["upstreamRemoteReset", 5, "UR"],
  ["upstreamConnectionFailure", 6, "UF"],
  ["upstreamConnectionTermination", 7, "UC"],
  ["upstreamOverflow", 8, "UO"],
  ["noRouteFound", 9, "NR"],
  ["downstreamConnectionTermination", 15, "DC"],
  ["downstreamRemoteReset", 28, "DR"],
  ["upstreamRetryLimitExceeded", 16, "URX"],
  ["streamIdleTimeout", 17, "SI"],
  ["downstreamProtocolError", 19, "DPE"],
  ["upstreamProtocolError", 24, "UPE"],
  ["noClusterFound", 25, "NC"],
  ["overloadManager", 26, "OM"],
];

/** Namespaces and keys of the dynamic metadata, and the custom tag, that come back with a record. */
export const recordKeys = {
  mesh: "kvmesh",
  decision: "decision",
  traceparent: "traceparent",
  predictedTtftMs: "predicted_ttft_ms",
  worker: "worker",
  loadBalancing: "envoy.lb",
  destination: "x-gateway-destination-endpoint",
  ttftUs: "ttft_us",
} as const;

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** Reads one record; absent parts become empty or 0. */
export function readAccessRecord(entry: HTTPAccessLogEntry): AccessRecord {
  const { commonProperties: common, request, response } = entry;
  const metadata = common?.metadata?.filterMetadata;
  const mesh = metadata?.[recordKeys.mesh];
  const picked = textOf(metadata?.[recordKeys.loadBalancing]?.[recordKeys.destination]);
  const ttftUs = Number(common?.customTags[recordKeys.ttftUs]);
  const start = common?.startTime;
  const flags = common?.responseFlags;
  return {
    decisionId: textOf(mesh?.[recordKeys.decision]),
    traceparent: textOf(mesh?.[recordKeys.traceparent]),
    predictedTtftMs: Number(textOf(mesh?.[recordKeys.predictedTtftMs])) || 0,
    workerId: textOf(mesh?.[recordKeys.worker]),
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
            .map(([, , name]) => name)
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
