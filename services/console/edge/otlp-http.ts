import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { BinaryWriter } from "@bufbuild/protobuf/wire";
import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import { MeshError } from "../../shared/core/errors.ts";
import type { HttpServer } from "../../shared/edge/http-server.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import { toMeshError, wire } from "../../shared/edge/wire.ts";
import {
  ExportTraceServiceRequest,
  ExportTraceServiceResponse,
} from "../../shared/gen/opentelemetry/proto/collector/trace/v1/trace_service.ts";
import type { consoleMetrics } from "../metrics.ts";
import { parseOtlpJson } from "./otlp-json.ts";
import type { Receiver } from "./receiver.ts";
import { withBody, type BodyBudget } from "./request-body.ts";

type Encoding = "json" | "protobuf";

const contentTypes: Readonly<Record<Encoding, string>> = {
  json: "application/json",
  protobuf: "application/x-protobuf",
};

/** Label of the refusal counter for an error. */
function refusal(error: MeshError): string {
  switch (error.code) {
    case "request_too_large":
      return "too_large";
    case "overloaded":
      return "busy";
    case "permission_denied":
      return "caller";
    case "not_found":
      return "unsupported";
    default:
      return "malformed";
  }
}

function encodingOf(request: IncomingMessage): Encoding {
  const type = (request.headers["content-type"] ?? "").split(";", 1)[0]?.trim().toLowerCase();
  if (type === contentTypes.json) return "json";
  if (type === contentTypes.protobuf) return "protobuf";
  throw new MeshError(
    "invalid_request",
    `content-type ${type === "" ? "(none)" : String(type)}: must be application/x-protobuf or application/json`,
    { field: "content-type" },
  );
}

function decode(body: Buffer, encoding: Encoding): ExportTraceServiceRequest {
  if (encoding === "json") return parseOtlpJson(body.toString("utf8"));
  try {
    return ExportTraceServiceRequest.decode(body);
  } catch (error) {
    throw new MeshError(
      "invalid_request",
      `body is not an ExportTraceServiceRequest: ${(error as Error).message}`,
      { cause: error },
    );
  }
}

function encodeResponse(answer: ExportTraceServiceResponse, encoding: Encoding): Buffer {
  if (encoding === "protobuf")
    return Buffer.from(ExportTraceServiceResponse.encode(answer).finish());
  const partial = answer.partialSuccess;
  const body =
    partial === undefined
      ? {}
      : {
          partialSuccess: {
            rejectedSpans: partial.rejectedSpans.toString(),
            errorMessage: partial.errorMessage,
          },
        };
  return Buffer.from(JSON.stringify(body));
}

/** `google.rpc.Status`, the body that OTLP/HTTP wants with every failure. */
function encodeStatus(error: MeshError, encoding: Encoding): Buffer {
  const code = wire[error.code].grpc;
  if (encoding === "json") return Buffer.from(JSON.stringify({ code, message: error.message }));
  const writer = new BinaryWriter().uint32(8).int32(code).uint32(18).string(error.message);
  return Buffer.from(writer.finish());
}

function respond(
  response: ServerResponse,
  status: number,
  encoding: Encoding,
  body: Buffer,
  headers: Readonly<Record<string, string>> = {},
): void {
  response.writeHead(status, {
    "content-type": contentTypes[encoding],
    "content-length": body.length,
    ...headers,
  });
  response.end(body);
}

function respondError(response: ServerResponse, thrown: unknown, encoding: Encoding): void {
  const error = toMeshError(thrown);
  const headers: Record<string, string> = {};
  if (error.retryAfterMs !== undefined) {
    headers["retry-after"] = Math.ceil(error.retryAfterMs / 1_000).toString();
  }
  // What is left of a refused body is not worth reading.
  headers["connection"] = "close";
  const status = error.field === "content-type" ? 415 : wire[error.code].http;
  respond(response, status, encoding, encodeStatus(error, encoding), headers);
}

/**
 * OTLP over HTTP: `POST /v1/traces` with protobuf or JSON, plain or gzip. Failures carry a `google.rpc.Status`;
 * 400, 404, 413 and 415 must not be sent again, 503 may after `retry-after`.
 */
export async function startOtlpHttp(options: {
  readonly host: string;
  readonly port: number;
  readonly receiver: Receiver;
  readonly bytesMax: number;
  readonly budget: BodyBudget;
  readonly allowed: readonly Cidr[];
  readonly metrics: Metrics<typeof consoleMetrics>;
}): Promise<HttpServer> {
  const handle = async (
    request: IncomingMessage,
    response: ServerResponse,
    encoding: Encoding,
  ): Promise<void> => {
    const peer = request.socket.remoteAddress ?? "";
    if (!inCidrs(options.allowed, peer)) {
      throw new MeshError(
        "permission_denied",
        `caller ${peer} is not in console.otlp.allowedCidrs`,
      );
    }
    const path = (request.url ?? "").split("?", 1)[0];
    if (path !== "/v1/traces" || request.method !== "POST") {
      throw new MeshError(
        "not_found",
        "only POST /v1/traces is served: logs and metrics are not received",
      );
    }
    const wanted = encodingOf(request);
    const answer = await withBody(request, options, (body) =>
      options.receiver.accept(decode(body, wanted), "http"),
    );
    respond(response, 200, encoding, encodeResponse(answer, encoding));
  };
  const server = createServer((request, response) => {
    const encoding: Encoding = (request.headers["content-type"] ?? "").startsWith(
      contentTypes.protobuf,
    )
      ? "protobuf"
      : "json";
    handle(request, response, encoding).catch((error: unknown) => {
      options.metrics.requestsRefused.inc({ reason: refusal(toMeshError(error)) });
      if (!response.headersSent && !response.destroyed) respondError(response, error, encoding);
    });
  });
  server.headersTimeout = 10_000;
  server.requestTimeout = 30_000;
  server.maxConnections = 1_024;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => {
          resolve();
        });
        server.closeAllConnections();
      }),
  };
}
