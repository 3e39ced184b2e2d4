import { credentials, type ClientWritableStream } from "@grpc/grpc-js";
import type { HTTPAccessLogEntry } from "../../services/shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import {
  AccessLogServiceClient,
  type StreamAccessLogsMessage,
} from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import type { ProcessingResponse } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";

/** Envoy's own interval between two messages of the log, ms. */
const flushMs = 20;
/** Time to the first token and to the end that the records tell, µs. */
const ttftUs = 500;
const durationUs = 50_000;

function nanos(us: number): { seconds: bigint; nanos: number } {
  return { seconds: 0n, nanos: us * 1_000 };
}

function record(metadata: NonNullable<ProcessingResponse["dynamicMetadata"]>): HTTPAccessLogEntry {
  const namespaces = metadata as Readonly<Record<string, Readonly<Record<string, string>>>>;
  const picked = namespaces["envoy.lb"]?.["x-gateway-destination-endpoint"]?.split(",")[0] ?? "";
  const [address = "", port = "0"] = picked.split(":");
  return {
    commonProperties: {
      downstreamRemoteAddress: undefined,
      downstreamLocalAddress: undefined,
      startTime: new Date(),
      timeToLastRxByte: nanos(500),
      timeToFirstUpstreamTxByte: nanos(2_000),
      timeToLastUpstreamTxByte: nanos(2_100),
      timeToFirstUpstreamRxByte: nanos(4_000),
      timeToLastUpstreamRxByte: nanos(durationUs),
      timeToFirstDownstreamTxByte: nanos(4_100),
      timeToLastDownstreamTxByte: nanos(durationUs),
      upstreamRemoteAddress: {
        address: {
          $case: "socketAddress",
          value: {
            protocol: 0,
            address,
            portSpecifier: { $case: "portValue", value: Number(port) },
          },
        },
      },
      upstreamCluster: "pool-default",
      responseFlags: undefined,
      metadata: { filterMetadata: namespaces, typedFilterMetadata: {} },
      upstreamTransportFailureReason: "",
      routeName: "",
      filterStateObjects: {},
      customTags: { ttft_us: ttftUs.toString() },
      duration: nanos(durationUs),
      upstreamRequestAttemptCount: 1,
      streamId: "",
      accessLogType: 0,
    },
    protocolVersion: 2,
    request: {
      requestMethod: 4,
      scheme: "http",
      authority: "gateway.example:10000",
      path: "/v1/chat/completions",
      userAgent: "openai-node/5.1.0",
      requestId: "",
      requestHeadersBytes: 400n,
      requestBodyBytes: 65_536n,
      requestHeaders: {},
    },
    response: {
      responseCode: 200,
      responseHeadersBytes: 200n,
      responseBodyBytes: 20_000n,
      responseHeaders: {},
      responseCodeDetails: "via_upstream",
    },
  };
}

/** Tells a router the ends of requests as Envoy's access log does: one stream, batches every 20 ms. */
export class AccessRecords {
  readonly #client: AccessLogServiceClient;
  readonly #stream: ClientWritableStream<StreamAccessLogsMessage>;
  readonly #timer: NodeJS.Timeout;
  #waiting: HTTPAccessLogEntry[] = [];

  constructor(target: string) {
    this.#client = new AccessLogServiceClient(target, credentials.createInsecure());
    this.#stream = this.#client.streamAccessLogs(() => {
      this.#client.close();
    });
    this.#stream.on("error", () => undefined);
    this.#timer = setInterval(() => {
      this.#flush();
    }, flushMs);
  }

  /** The request with this answer is over 50 ms from now. */
  add(metadata: NonNullable<ProcessingResponse["dynamicMetadata"]>): void {
    setTimeout(() => {
      this.#waiting.push(record(metadata));
    }, durationUs / 1_000);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#flush();
    this.#stream.end();
  }

  #flush(): void {
    if (this.#waiting.length === 0) return;
    const logEntry = this.#waiting;
    this.#waiting = [];
    const logEntries = { $case: "httpLogs" as const, value: { logEntry } };
    this.#stream.write({ identifier: undefined, logEntries });
  }
}
