import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";

/** A request as an engine got it. */
export interface EngineRequest {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

/** An HTTP server in place of an engine, which keeps what it was sent. */
export interface EchoEngine {
  /** `127.0.0.1:port`. */
  readonly endpoint: string;
  readonly seen: EngineRequest[];
  /** Status of the next answers; 200 at first. */
  status: number;
  stop(): Promise<void>;
}

/** Starts one on a free port of loopback, or on `port`. */
export async function startEchoEngine(name: string, port = 0): Promise<EchoEngine> {
  const seen: EngineRequest[] = [];
  let status = 200;
  const server = createServer((request, response) => {
    const pieces: Buffer[] = [];
    request.on("data", (piece: Buffer) => pieces.push(piece));
    request.on("end", () => {
      seen.push({ path: request.url ?? "", headers: request.headers, body: Buffer.concat(pieces) });
      response.writeHead(status, { "content-type": "application/json" });
      response.end(JSON.stringify({ engine: name }));
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", resolve);
  });
  const bound = (server.address() as AddressInfo).port;
  return {
    endpoint: `127.0.0.1:${bound.toString()}`,
    seen,
    get status() {
      return status;
    },
    set status(next) {
      status = next;
    },
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
