import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { MeshError } from "../../shared/core/errors.ts";
import type { HeaderField } from "../core/request/forwarded-headers.ts";
import { BodyCharge, type BodyMemory, type BodyRefusal } from "./body-memory.ts";
import type { AnswerListener, ClientAnswer, ClientRequest } from "./client-exchange.ts";

/** Takes requests that came whole, and is told of those that will not. */
export interface RequestTaker {
  take(request: ClientRequest, answer: ClientAnswer): void;
  /** Throws what the client hears when no more requests are taken now. */
  requireRoom(): void;
  refuse(answer: ClientAnswer, reason: BodyRefusal): void;
  /** Counts a body that is not held, and says what its client hears. */
  bodyError(reason: BodyRefusal): MeshError;
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
  readonly #charge: BodyCharge;

  constructor(message: IncomingMessage, body: Uint8Array, charge: BodyCharge) {
    this.method = message.method ?? "";
    this.path = message.url ?? "/";
    this.body = body;
    this.#message = message;
    this.#charge = charge;
  }

  header(name: string): string | undefined {
    const value = this.#message.headers[name];
    return typeof value === "object" ? value.join(",") : value;
  }

  bodyDone(): void {
    this.#charge.giveBack();
  }

  over(): void {
    this.#charge.giveBack();
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
  const charge = new BodyCharge(memory);
  let isDone = false;
  message.on("data", (part: Buffer) => {
    if (isDone) return;
    const refusal = charge.take(part.length);
    if (refusal === undefined) {
      parts.push(part);
      return;
    }
    isDone = true;
    charge.giveBack();
    parts.length = 0;
    message.resume();
    taker.refuse(answer, refusal);
  });
  message.on("end", () => {
    if (isDone) return;
    isDone = true;
    const body = parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
    parts.length = 0;
    const request = new Http1Request(message, body, charge);
    taker.take(request, answer);
    // The exchange keeps the body for as long as it needs it.
    request.body = noBody;
  });
  message.on("error", () => undefined);
  message.on("close", () => {
    if (isDone) return;
    isDone = true;
    charge.giveBack();
  });
}
