import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Logger } from "pino";
import type { Registry } from "prom-client";
import { MeshError } from "../../shared/core/errors.ts";
import {
  operationsRoutes,
  sendJson,
  type HttpHandler,
  type HttpServer,
} from "../../shared/edge/http-server.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import { toMeshError, wire } from "../../shared/edge/wire.ts";
import type { consoleMetrics } from "../metrics.ts";
import type { TraceStore } from "./trace-store.ts";

/** Most traces in one answer. */
const limitMax = 1_000;
const limitDefault = 50;
/** Longest id in a path. */
const idLengthMax = 200;

const help = `kvmesh console: traces of this mesh

GET /api/traces?limit=50&slow=500   newest traces; slow: only those with this many ms to first token, or more
GET /api/traces/last                newest trace with a routing decision
GET /api/traces/<trace id>          one trace, 32 hex digits
GET /api/by-request/<request id>    the newest trace with this x-request-id
GET /api/by-decision/<decision id>  the trace of one decision
GET /metrics                        Prometheus text
GET /healthz                        whether spans are received

The same in words: npx kvmesh trace last
Spans are received over OTLP: gRPC on port 4317, HTTP on port 4318 (POST /v1/traces), unless configured otherwise.
`;

function numberIn(
  query: URLSearchParams,
  name: string,
  range: { readonly min: number; readonly max: number; readonly whole: boolean },
): number | undefined {
  const given = query.get(name);
  if (given === null) return undefined;
  const value = given.trim() === "" ? Number.NaN : Number(given);
  const fits =
    value >= range.min && value <= range.max && (!range.whole || Number.isInteger(value));
  if (fits) return value;
  const kind = range.whole ? "whole number" : "number";
  throw new MeshError(
    "invalid_request",
    `${name}=${given.slice(0, 100)}: must be a ${kind} from ${range.min.toString()} to ${range.max.toString()}`,
    { field: name },
  );
}

function refuseUnknown(query: URLSearchParams, known: readonly string[]): void {
  for (const name of query.keys()) {
    if (known.includes(name)) continue;
    const accepted = known.length === 0 ? "none is accepted here" : `accepted: ${known.join(", ")}`;
    throw new MeshError("invalid_request", `unknown parameter ${name.slice(0, 100)}; ${accepted}`, {
      field: name.slice(0, 100),
    });
  }
}

function idIn(segment: string, what: string): string {
  let id: string;
  try {
    id = decodeURIComponent(segment);
  } catch {
    throw new MeshError("invalid_request", `${what}: broken percent encoding; encode it with %XX`);
  }
  if (id === "" || id.length > idLengthMax) {
    throw new MeshError(
      "invalid_request",
      `${what}: must have 1 to ${idLengthMax.toString()} characters`,
    );
  }
  return id;
}

/** One query: its label in metrics, and JSON text or a thrown `MeshError`. */
interface Query {
  readonly route: string;
  readonly answer: () => string;
}

function traceOrThrow(store: TraceStore, traceId: string | undefined, missing: string): string {
  const json = traceId === undefined ? undefined : store.traceJson(traceId);
  if (json === undefined) throw new MeshError("not_found", missing);
  return json;
}

/** The query that a path names; `undefined` when there is none. */
function findQuery(path: string, query: URLSearchParams, store: TraceStore): Query | undefined {
  const [, api, kind = "", segment, ...more] = path.split("/");
  if (api !== "api" || more.length > 0) return undefined;
  if (kind === "traces" && segment === undefined) {
    return {
      route: "traces",
      answer: () => {
        refuseUnknown(query, ["limit", "slow"]);
        const limit =
          numberIn(query, "limit", { min: 1, max: limitMax, whole: true }) ?? limitDefault;
        const slowMs = numberIn(query, "slow", { min: 0, max: 86_400_000, whole: false });
        return JSON.stringify({ traces: store.list(limit, slowMs) });
      },
    };
  }
  if (segment === undefined) return undefined;
  const plain = (route: string, answer: () => string): Query => ({
    route,
    answer: () => {
      refuseUnknown(query, []);
      return answer();
    },
  });
  if (kind === "traces" && segment === "last") {
    return plain("last", () =>
      traceOrThrow(
        store,
        store.lastRouted(),
        "no trace with a routing decision yet: send a request through Envoy and ask again",
      ),
    );
  }
  if (kind === "traces") {
    return plain("trace", () => {
      const traceId = segment.toLowerCase();
      if (!/^[0-9a-f]{32}$/u.test(traceId)) {
        throw new MeshError("invalid_request", "trace id: must be 32 hex digits, or the word last");
      }
      return traceOrThrow(
        store,
        traceId,
        `trace ${traceId} is not held: never received, or dropped to make room`,
      );
    });
  }
  if (kind === "by-request" || kind === "by-decision") {
    const what = kind === "by-request" ? "request" : "decision";
    return plain(kind, () => {
      const id = idIn(segment, `${what} id`);
      return traceOrThrow(
        store,
        store.findById(what, id)[0],
        `no trace with ${what} id ${id} is held`,
      );
    });
  }
  return undefined;
}

/**
 * The console's HTTP side: queries as JSON, metrics, health. Every refusal is
 * `{"error":{"code","message","field"?}}` with the status of its code; the message says how to mend the request.
 */
export async function startQueryApi(options: {
  readonly host: string;
  readonly port: number;
  readonly store: () => TraceStore;
  readonly registry: Registry;
  readonly metrics: Metrics<typeof consoleMetrics>;
  readonly healthy: () => boolean;
  readonly log: Logger;
}): Promise<HttpServer> {
  const operations = operationsRoutes(options.registry, options.healthy);

  const answerQuery = (query: Query, response: ServerResponse): void => {
    try {
      const body = query.answer();
      options.metrics.queries.inc({ route: query.route, status: "200" });
      response.writeHead(200, { "content-type": "application/json" });
      response.end(`${body}\n`);
    } catch (thrown) {
      const error = toMeshError(thrown);
      const status = wire[error.code].http;
      if (status === 500) {
        options.log.error(
          { event: "query_failed", route: query.route, err: thrown },
          "query failed",
        );
      }
      options.metrics.queries.inc({ route: query.route, status: status.toString() });
      sendError(response, status, error);
    }
  };

  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const [path = "/", search = ""] = (request.url ?? "/").split("?", 2);
    if (request.method !== "GET" && request.method !== "HEAD") {
      const text = `method ${request.method ?? ""} is not served: use GET`;
      sendError(response, 405, new MeshError("invalid_request", text), { allow: "GET, HEAD" });
      return;
    }
    if (path === "/") {
      response.writeHead(200, { "content-type": "text/plain; charset=utf-8" });
      response.end(help);
      return;
    }
    const operation: HttpHandler | undefined = Object.hasOwn(operations, path)
      ? operations[path]
      : undefined;
    if (operation !== undefined) {
      await operation(request, response);
      return;
    }
    const query = findQuery(path, new URLSearchParams(search), options.store());
    if (query === undefined) {
      const text = `no such path: ${path.slice(0, 200)}; GET / lists what there is`;
      sendError(response, 404, new MeshError("not_found", text));
      return;
    }
    answerQuery(query, response);
  };

  const server = createServer((request, response) => {
    handle(request, response).catch((error: unknown) => {
      options.log.error({ event: "query_failed", err: error }, "query failed");
      if (!response.headersSent) sendError(response, 500, toMeshError(error));
      else response.destroy();
    });
  });
  server.headersTimeout = 10_000;
  server.requestTimeout = 30_000;
  server.maxConnections = 256;
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

function sendError(
  response: ServerResponse,
  status: number,
  error: MeshError,
  headers: Readonly<Record<string, string>> = {},
): void {
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
  const message =
    status === 500 ? "internal error; the console's log has the cause" : error.message;
  const field = error.field === undefined ? {} : { field: error.field };
  sendJson(response, status, { error: { code: error.code, message, ...field } });
}
