import { Agent, request as request1, type IncomingMessage } from "node:http";
import { connect, type ClientHttp2Session } from "node:http2";
import type { Writable } from "node:stream";

/** How a request goes over the wire: HTTP/1.1 with its length, HTTP/1.1 in chunks, or cleartext HTTP/2. */
export const framings = ["http1-length", "http1-chunked", "http2"] as const;
/** One of `framings`. */
export type Framing = (typeof framings)[number];

/** A request whose bytes on the wire the test decides. */
export interface WireRequest {
  /** `http://host:port`. */
  readonly url: string;
  readonly framing: Framing;
  /** Default POST. */
  readonly method?: string;
  readonly path: string;
  /** Name and value pairs, so that a header can be sent twice. `content-type` is JSON unless given. */
  readonly headers?: readonly (readonly [name: string, value: string])[];
  /** Announced body length; needed with `http1-length` and a body. */
  readonly contentLength?: number;
  /** Sent after the body; not possible with `http1-length`. */
  readonly trailers?: Readonly<Record<string, string>>;
}

/** What came back. */
export interface WireAnswer {
  readonly status: number;
  /** The last value of each header, by lower-case name. */
  readonly headers: ReadonlyMap<string, string>;
  readonly body: Buffer;
  /** Whether the answer came to its proper end; false when it was cut off. */
  readonly complete: boolean;
}

/** A request in progress on a connection of its own. */
export interface WireExchange {
  /** Sends a piece of the body; resolves when the next one may be sent. */
  write(piece: Uint8Array): Promise<void>;
  /** Ends the body, with the trailers when there are some. */
  end(): void;
  /** Goes away without a word: RST_STREAM with HTTP/2, a closed connection with HTTP/1.1. */
  reset(): void;
  /** Resolves with the first bytes of the answer's body. */
  readonly firstBytes: Promise<Buffer>;
  /** Resolves when the answer has ended or was cut off; rejects when there never was one. */
  readonly answer: Promise<WireAnswer>;
}

/** Longest wait for the end of an answer, ms. */
const answerMsMax = 60_000;

/** Collects an answer, whichever protocol brings it. */
class AnswerReader {
  readonly firstBytes: Promise<Buffer>;
  readonly answer: Promise<WireAnswer>;
  readonly #first = Promise.withResolvers<Buffer>();
  readonly #whole = Promise.withResolvers<WireAnswer>();
  readonly #chunks: Buffer[] = [];
  readonly #late: NodeJS.Timeout;
  #status = 0;
  #headers: ReadonlyMap<string, string> = new Map();

  constructor(what: string) {
    this.firstBytes = this.#first.promise;
    this.answer = this.#whole.promise;
    // Whoever waits for one of the two may not wait for the other.
    this.firstBytes.catch(() => undefined);
    this.answer.catch(() => undefined);
    this.#late = setTimeout(() => {
      const got = `status ${String(this.#status)}, ${String(this.#chunks.length)} pieces`;
      this.failed(new Error(`${what}: the answer did not end; so far ${got}`));
    }, answerMsMax);
  }

  head(status: number, headers: ReadonlyMap<string, string>): void {
    this.#status = status;
    this.#headers = headers;
  }

  piece(bytes: Buffer): void {
    this.#chunks.push(bytes);
    this.#first.resolve(bytes);
  }

  /** The end, proper or not; the first call counts. Without a head it is a failure. */
  ended(complete: boolean, cause?: Error): void {
    if (this.#status === 0) {
      this.failed(cause ?? new Error("the connection ended before there was an answer"));
      return;
    }
    clearTimeout(this.#late);
    const body = Buffer.concat(this.#chunks);
    this.#first.reject(new Error(`status ${String(this.#status)} without a body`));
    this.#whole.resolve({ status: this.#status, headers: this.#headers, body, complete });
  }

  failed(error: Error): void {
    clearTimeout(this.#late);
    this.#first.reject(error);
    this.#whole.reject(error);
  }
}

function allHeaders(request: WireRequest): (readonly [string, string])[] {
  const given = request.headers ?? [];
  const typed = given.some(([name]) => name.toLowerCase() === "content-type");
  const length = request.contentLength;
  return [
    ...(typed ? [] : [["content-type", "application/json"] as const]),
    ...given,
    ...(length === undefined ? [] : [["content-length", String(length)] as const]),
  ];
}

/** Resolves when more can be written, or when nothing more can be: a peer that has answered may stop reading. */
async function writeTo(sink: Writable, piece: Uint8Array): Promise<void> {
  if (sink.destroyed || sink.closed || sink.write(piece)) return;
  await new Promise<void>((resolve) => {
    const settle = (): void => {
      sink.off("drain", settle);
      sink.off("close", settle);
      resolve();
    };
    sink.on("drain", settle);
    sink.on("close", settle);
  });
}

/** Opens a request and sends its head. */
export function openExchange(request: WireRequest): WireExchange {
  const what = `${request.framing} ${request.method ?? "POST"} ${request.path}`;
  const reader = new AnswerReader(what);
  return request.framing === "http2" ? openHttp2(request, reader) : openHttp1(request, reader);
}

function openHttp1(request: WireRequest, reader: AnswerReader): WireExchange {
  const chunked = request.framing === "http1-chunked";
  const trailers = Object.entries(request.trailers ?? {});
  const headers = [["host", new URL(request.url).host] as const, ...allHeaders(request)];
  if (chunked) headers.push(["transfer-encoding", "chunked"]);
  if (trailers.length > 0) headers.push(["trailer", trailers.map(([name]) => name).join(", ")]);
  const agent = new Agent({ keepAlive: false });
  const outgoing = request1(request.url + request.path, {
    method: request.method ?? "POST",
    agent,
    headers: headers.flatMap(([name, value]) => [name, value]),
  });
  outgoing.setNoDelay(true);
  outgoing.flushHeaders();
  outgoing.on("response", (incoming: IncomingMessage) => {
    const names = Object.entries(incoming.headersDistinct);
    reader.head(
      incoming.statusCode ?? 0,
      new Map(names.map(([name, values]) => [name, values?.at(-1) ?? ""])),
    );
    incoming.on("data", (bytes: Buffer) => {
      reader.piece(bytes);
    });
    incoming.on("error", () => undefined);
    incoming.on("close", () => {
      reader.ended(incoming.complete);
      outgoing.destroy();
    });
  });
  outgoing.on("error", (error) => {
    reader.ended(false, error);
  });
  return {
    firstBytes: reader.firstBytes,
    answer: reader.answer,
    write: (piece) => writeTo(outgoing, piece),
    end: () => {
      if (trailers.length > 0) outgoing.addTrailers(Object.fromEntries(trailers));
      if (!outgoing.destroyed) outgoing.end();
    },
    reset: () => {
      outgoing.destroy();
      agent.destroy();
    },
  };
}

function openHttp2(request: WireRequest, reader: AnswerReader): WireExchange {
  const session: ClientHttp2Session = connect(request.url);
  session.on("error", (error: Error) => {
    reader.ended(false, error);
  });
  const { trailers } = request;
  const headers: Record<string, string | string[]> = {
    ":method": request.method ?? "POST",
    ":path": request.path,
  };
  for (const [name, value] of allHeaders(request)) {
    const before = headers[name];
    headers[name] = before === undefined ? value : [before, value].flat();
  }
  const stream = session.request(headers, {
    endStream: false,
    ...(trailers === undefined ? {} : { waitForTrailers: true }),
  });
  if (trailers !== undefined) {
    stream.on("wantTrailers", () => {
      stream.sendTrailers({ ...trailers });
    });
  }
  stream.on("response", (received) => {
    const names = Object.entries(received).filter(([name]) => !name.startsWith(":"));
    reader.head(
      received[":status"] ?? 0,
      new Map(names.map(([name, value]) => [name, [value ?? ""].flat().at(-1) ?? ""])),
    );
  });
  let ended = false;
  stream.on("data", (bytes: Buffer) => {
    reader.piece(bytes);
  });
  stream.on("end", () => {
    ended = true;
  });
  let failure: Error | undefined;
  stream.on("error", (error: Error) => {
    failure = error;
  });
  stream.on("close", () => {
    // A server that needs no more of the body may end its answer and reset the rest with NO_ERROR.
    reader.ended(ended && stream.rstCode === 0, failure);
    session.close();
  });
  return {
    firstBytes: reader.firstBytes,
    answer: reader.answer,
    write: (piece) => writeTo(stream, piece),
    end: () => {
      if (!stream.destroyed) stream.end();
    },
    reset: () => {
      stream.close(8); // CANCEL
    },
  };
}

/** Sends a whole request, its body in pieces of `pieceBytes`, and reads the answer to its end. */
export async function sendExchange(
  request: Omit<WireRequest, "contentLength"> & {
    readonly body?: Uint8Array;
    /** Default: the body in one piece. */
    readonly pieceBytes?: number;
  },
): Promise<WireAnswer> {
  const { body, pieceBytes, ...head } = request;
  const length = body?.length ?? 0;
  const exchange = openExchange({
    ...head,
    ...(body !== undefined && request.framing !== "http1-chunked" ? { contentLength: length } : {}),
  });
  const step = pieceBytes ?? Math.max(1, length);
  for (let at = 0; body !== undefined && at < length; at += step) {
    await exchange.write(body.subarray(at, at + step));
  }
  exchange.end();
  return exchange.answer;
}
