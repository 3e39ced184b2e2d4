import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { HeaderField } from "../core/request/forwarded-headers.ts";
import type { BodyMemory } from "./body-memory.ts";
import type { AnswerListener, ClientAnswer, ClientRequest } from "./client-exchange.ts";

/** Takes requests that came whole, and is told of those that will not. */
export interface RequestTaker {
  take(request: ClientRequest, answer: ClientAnswer): void;
  /** Throws what the client hears when no more requests are taken now. */
  requireRoom(): void;
  refuse(answer: ClientAnswer, reason: "body_too_large" | "body_memory"): void;
}

/** A running server. */
export interface ClientServer {
  readonly port: number;
  /** Stops listening; open requests go on. */
  stopListening(): void;
  /** Ends everything at once. */
  close(): Promise<void>;
}

const noBody = new Uint8Array(0);

class Http1Answer implements ClientAnswer {
  listener: AnswerListener | undefined;
  readonly #response: ServerResponse;

  constructor(response: ServerResponse) {
    this.#response = response;
    response.on("drain", () => this.listener?.onDrain());
    response.on("close", () => {
      if (!response.writableEnded) this.listener?.onGone();
    });
    response.on("error", () => undefined);
  }

  head(status: number, fields: readonly HeaderField[]): void {
    this.#response.writeHead(status, fields.flat());
  }

  write(bytes: Uint8Array): boolean {
    return this.#response.write(bytes);
  }

  end(): void {
    this.#response.end();
  }

  destroy(): void {
    this.#response.destroy();
  }
}

class Http1Request implements ClientRequest {
  readonly method: string;
  readonly path: string;
  body: Uint8Array;
  readonly #message: IncomingMessage;

  constructor(message: IncomingMessage, body: Uint8Array) {
    this.method = message.method ?? "";
    this.path = message.url ?? "/";
    this.body = body;
    this.#message = message;
  }

  header(name: string): string | undefined {
    const value = this.#message.headers[name];
    return typeof value === "object" ? value.join(",") : value;
  }

  over(): void {
    return;
  }

  *fields(): Iterable<HeaderField> {
    const raw = this.#message.rawHeaders;
    for (let i = 0; i + 1 < raw.length; i += 2) {
      yield [(raw[i] ?? "").toLowerCase(), raw[i + 1] ?? ""];
    }
  }
}

/** Serves HTTP/1.1. */
export async function startHttp1Server(options: {
  readonly host: string;
  readonly port: number;
  readonly taker: RequestTaker;
  readonly memory: BodyMemory;
  readonly bodyMs: number;
  readonly clientBufferBytesMax: number;
}): Promise<ClientServer> {
  const { taker, memory } = options;
  const server: Server = createServer(
    { highWaterMark: options.clientBufferBytesMax, keepAliveTimeout: 65_000 },
    (message, response) => {
      readBody(message, new Http1Answer(response), memory, taker);
    },
  );
  server.requestTimeout = options.bodyMs;
  server.headersTimeout = Math.min(options.bodyMs, 10_000);
  server.maxRequestsPerSocket = 0;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.host, 4_096, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    stopListening: () => {
      server.close();
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => {
          resolve();
        });
        server.closeAllConnections();
      }),
  };
}

function readBody(
  message: IncomingMessage,
  answer: ClientAnswer,
  memory: BodyMemory,
  taker: RequestTaker,
): void {
  const parts: Buffer[] = [];
  let size = 0;
  let isDone = false;
  const refuse = (reason: "body_too_large" | "body_memory"): void => {
    isDone = true;
    memory.give(size);
    parts.length = 0;
    message.resume();
    taker.refuse(answer, reason);
  };
  message.on("data", (part: Buffer) => {
    if (isDone) return;
    if (size + part.length > memory.bodyBytesMax) refuse("body_too_large");
    else if (!memory.take(part.length)) refuse("body_memory");
    else {
      size += part.length;
      parts.push(part);
    }
  });
  message.on("end", () => {
    if (isDone) return;
    isDone = true;
    const body = parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
    memory.give(size);
    const request = new Http1Request(message, body);
    taker.take(request, answer);
    // The exchange keeps the body for as long as it needs it.
    request.body = noBody;
  });
  message.on("error", () => undefined);
  message.on("close", () => {
    if (isDone) return;
    isDone = true;
    memory.give(size);
  });
}
