import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Registry } from "prom-client";

/** Answers one request; may be asynchronous. What it throws becomes a 500 without details. */
export type HttpHandler = (
  request: IncomingMessage,
  response: ServerResponse,
) => void | Promise<void>;

/** A started server. */
export interface HttpServer {
  /** Port chosen. */
  readonly port: number;
  /** Stops listening and ends what is open. */
  close(): Promise<void>;
}

/** Writes a JSON answer. */
export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(`${JSON.stringify(body)}\n`);
}

/** The usual pair: `/metrics` in Prometheus text and `/healthz`, 200 while `healthy` says so, else 503. */
export function operationsRoutes(
  registry: Registry,
  healthy: () => boolean,
): Record<string, HttpHandler> {
  return {
    "/metrics": async (_request, response) => {
      const text = await registry.metrics();
      response.writeHead(200, { "content-type": registry.contentType });
      response.end(text);
    },
    "/healthz": (_request, response) => {
      const ok = healthy();
      sendJson(response, ok ? 200 : 503, { healthy: ok });
    },
  };
}

/** Serves exact paths; anything else is a 404 that lists them. Headers and idle connections time out after 10 s. */
export async function startHttp(options: {
  host: string;
  port: number;
  routes: Readonly<Record<string, HttpHandler>>;
}): Promise<HttpServer> {
  const { routes } = options;
  const server: Server = createServer((request, response) => {
    const path = (request.url ?? "/").split("?", 1)[0] ?? "/";
    const handler = Object.hasOwn(routes, path) ? routes[path] : undefined;
    if (handler === undefined) {
      sendJson(response, 404, { error: `no such path: ${path}`, paths: Object.keys(routes) });
      return;
    }
    Promise.resolve()
      .then(() => handler(request, response))
      .catch(() => {
        if (!response.headersSent) sendJson(response, 500, { error: "internal error" });
        else response.destroy();
      });
  });
  server.headersTimeout = 10_000;
  server.requestTimeout = 30_000;
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
