import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Logger } from "pino";
import { sendJsonText } from "./answer.ts";
import { toVllmError, VllmError } from "./vllm-error.ts";

/** Answers one request; `body` is empty for GET. What it throws becomes an error in vLLM's shape. */
export type SurfaceHandler = (
  request: IncomingMessage,
  response: ServerResponse,
  body: Buffer,
  url: URL,
) => void | Promise<void>;

/** Handlers by `METHOD /path`. */
export type SurfaceRoutes = Readonly<Record<string, SurfaceHandler>>;

/** The engine's HTTP server: routing, bounded bodies, error shape. */
export class HttpSurface {
  readonly #server: Server;
  readonly #routes: SurfaceRoutes;
  readonly #bodyBytesMax: number;
  readonly #log: Logger;
  readonly #flatErrors: boolean;
  #openRequests = 0;
  #mute = false;

  constructor(options: {
    routes: SurfaceRoutes;
    bodyBytesMax: number;
    log: Logger;
    /** See `VllmError.body`. */
    flatErrors?: boolean;
  }) {
    this.#routes = options.routes;
    this.#bodyBytesMax = options.bodyBytesMax;
    this.#log = options.log;
    this.#flatErrors = options.flatErrors ?? false;
    this.#server = createServer(
      // An idle upstream connection outlives Envoy's own idle timeout, so that Envoy closes first.
      { keepAliveTimeout: 75_000, requestTimeout: 60_000, noDelay: true },
      (request, response) => {
        void this.#serve(request, response);
      },
    );
  }

  /** Requests whose answer is not finished. */
  get openRequests(): number {
    return this.#openRequests;
  }

  /** Listens; resolves with the port. */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(port, host, () => {
        this.#server.removeListener("error", reject);
        resolve();
      });
    });
    return (this.#server.address() as AddressInfo).port;
  }

  /** From now on requests on open connections get no answer at all. */
  mute(): void {
    this.#mute = true;
  }

  /** Stops listening; open requests go on. */
  stopListening(): void {
    this.#server.close();
    this.#server.closeIdleConnections();
  }

  /** Ends everything. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => {
        resolve();
      });
    });
    this.#server.closeAllConnections();
    await closed;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.#mute) return;
    this.#openRequests++;
    response.once("close", () => {
      this.#openRequests--;
    });
    response.on("error", () => {
      // The client went away while we wrote; `close` follows and aborts the request.
    });
    try {
      const url = new URL(request.url ?? "/", "http://engine");
      const handler = this.#route(request.method ?? "GET", url.pathname);
      const body = await this.#body(request);
      await handler(request, response, body, url);
    } catch (error) {
      const known = toVllmError(error);
      if (known.status === 500 && !(error instanceof VllmError)) {
        this.#log.error({ event: "request_failed", err: error }, "request failed");
      }
      if (response.headersSent) response.destroy();
      else sendJsonText(response, known.status, known.body(this.#flatErrors));
    }
  }

  #route(method: string, path: string): SurfaceHandler {
    const key = `${method} ${path}`;
    const handler = Object.hasOwn(this.#routes, key) ? this.#routes[key] : undefined;
    if (handler !== undefined) return handler;
    const other = Object.keys(this.#routes).some((route) => route.endsWith(` ${path}`));
    if (other) throw new VllmError(405, "Method Not Allowed", "Method Not Allowed");
    throw new VllmError(404, "Not Found", "Not Found");
  }

  async #body(request: IncomingMessage): Promise<Buffer> {
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of request as AsyncIterable<Buffer>) {
      size += chunk.length;
      if (size > this.#bodyBytesMax) {
        throw new VllmError(
          413,
          "Request Entity Too Large",
          `the body exceeds ${String(this.#bodyBytesMax)} bytes`,
        );
      }
      chunks.push(chunk);
    }
    return chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks);
  }
}
