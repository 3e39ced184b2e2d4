import { noHeaders, type RequestHeaders } from "./request-headers.ts";

/** How Envoy sends the request body, as its first message says. */
export type BodyMode = "none" | "buffered" | "buffered_partial" | "full_duplex" | "unsupported";

/** What Envoy sends on one ext_proc stream, without wire types. */
export type ExchangeEvent =
  | {
      readonly kind: "request_headers";
      readonly headers: RequestHeaders;
      readonly endOfStream: boolean;
      readonly bodyMode: BodyMode;
    }
  | { readonly kind: "request_body"; readonly body: Uint8Array; readonly endOfStream: boolean }
  | { readonly kind: "request_trailers" }
  | { readonly kind: "other"; readonly name: string };

/** A whole request, ready to be decided. */
export interface ExchangeRequest {
  readonly headers: RequestHeaders;
  /** Parts of the body in order; only valid while the `decide` effect is carried out. */
  readonly body: readonly Uint8Array[];
  readonly bodyBytes: number;
  /** The rest of the body passes unseen. */
  readonly truncated: boolean;
}

/** Header changes and metadata of a placed request. */
export interface RoutingAnswer {
  readonly kind: "route";
  readonly setHeaders: readonly (readonly [name: string, value: string])[];
  readonly removeHeaders: readonly string[];
  /** Namespaces of dynamic metadata. */
  readonly metadata: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

/** An answer given to the client instead of passing the request on. */
export interface ImmediateAnswer {
  readonly kind: "immediate";
  readonly status: number;
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly body: string;
  /** Short reason, for Envoy's response code details. */
  readonly details: string;
  readonly grpcStatus: number;
}

/** The router's answer to a request. */
export type Answer = RoutingAnswer | ImmediateAnswer;

/** What the edge must do next, in order. */
export type ExchangeEffect =
  | { readonly kind: "continue_headers" }
  | { readonly kind: "decide"; readonly request: ExchangeRequest }
  | { readonly kind: "extend_timeout"; readonly ms: number }
  | { readonly kind: "answer_headers"; readonly answer: RoutingAnswer }
  | { readonly kind: "answer_body"; readonly answer: RoutingAnswer }
  | { readonly kind: "body_piece"; readonly piece: Uint8Array; readonly endOfStream: boolean }
  | { readonly kind: "answer_trailers" }
  | { readonly kind: "immediate"; readonly answer: ImmediateAnswer }
  | { readonly kind: "end" }
  | { readonly kind: "fail"; readonly reason: string };

/** Pieces of an echoed body are at most this long, bytes: below Envoy's recommended 64 KB. */
export const pieceBytesMax = 62_000;

/** Keeps the parts of a body that is to be sent back. */
export interface BodyStore {
  /** Keeps a part. */
  add(part: Uint8Array): void;
  /** What was added, in order; in as many views as the store likes. */
  readonly parts: readonly Uint8Array[];
}

/** A store that keeps the parts as they were given. */
export class ReceivedParts implements BodyStore {
  readonly parts: Uint8Array[] = [];

  add(part: Uint8Array): void {
    this.parts.push(part);
  }
}

const noParts: readonly Uint8Array[] = [];

type State = "headers" | "body" | "deciding" | "done";

/**
 * The router's side of one ext_proc stream: Envoy's messages in, effects out.
 *
 * | state | headers | body | trailers | waiting | decided |
 * |---|---|---|---|---|---|
 * | headers | BUFFERED: continue, → body; duplex: → body; no body: decide | fail | fail | – | – |
 * | body | fail | BUFFERED: decide; duplex: keep, decide at the end | duplex: decide; else ignore | – | – |
 * | deciding | fail | ignore (a repeated end of stream) | ignore | extend the timeout, once; duplex: – | answer, end, → done |
 * | done | ignore | ignore | ignore | – | ignore |
 *
 * In BUFFERED modes the first body message is the whole body whatever its end mark says: with trailers it has
 * none; it is not kept once it has been shown to the decision. In full duplex the body is kept and echoed in pieces,
 * and after trailers the last piece carries no end mark. Envoy lets a processor put its message timer off once for
 * each message; in full duplex there is no such timer.
 */
export class Exchange {
  readonly #store: BodyStore;
  #state: State = "headers";
  #mode: BodyMode = "none";
  #headers: RequestHeaders = noHeaders;
  #bodyBytes = 0;
  #trailers = false;
  #headersOnly = false;
  #extended = false;

  /** `store` keeps a body that is sent back; others are only shown to the decision. */
  constructor(store: BodyStore = new ReceivedParts()) {
    this.#store = store;
  }

  /** Bytes of body received so far. */
  get bodyBytes(): number {
    return this.#bodyBytes;
  }

  /** Whether a body message would be looked at. */
  get takesBody(): boolean {
    return this.#state === "body";
  }

  /** Whether the body is kept until the answer, to be sent back with it. */
  get keepsBody(): boolean {
    return this.#mode === "full_duplex";
  }

  /** Whether the answer has been given. */
  get done(): boolean {
    return this.#state === "done";
  }

  /** Takes one message. */
  receive(event: ExchangeEvent): ExchangeEffect[] {
    if (this.#state === "done") return [];
    switch (event.kind) {
      case "request_headers":
        return this.#onHeaders(event);
      case "request_body":
        return this.#onBody(event.body, event.endOfStream);
      case "request_trailers":
        return this.#onTrailers();
      case "other":
        return this.#fail(`${event.name} was sent; set its processing mode to SKIP or NONE`);
    }
  }

  /** The decision will take up to so many ms. */
  waiting(ms: number): ExchangeEffect[] {
    if (this.#state !== "deciding" || this.#extended || this.#mode === "full_duplex") return [];
    this.#extended = true;
    return [{ kind: "extend_timeout", ms }];
  }

  /** Takes the decision for the request that a `decide` effect carried. */
  decided(answer: Answer): ExchangeEffect[] {
    if (this.#state !== "deciding") return [];
    this.#state = "done";
    if (answer.kind === "immediate") return [{ kind: "immediate", answer }, { kind: "end" }];
    if (this.#headersOnly) return [{ kind: "answer_headers", answer }, { kind: "end" }];
    if (this.#mode !== "full_duplex") return [{ kind: "answer_body", answer }, { kind: "end" }];
    const effects: ExchangeEffect[] = [{ kind: "answer_headers", answer }];
    const pieces = [...this.#pieces(this.#store.parts)];
    pieces.forEach((piece, i) => {
      const last = i === pieces.length - 1;
      effects.push({ kind: "body_piece", piece, endOfStream: last && !this.#trailers });
    });
    if (this.#trailers) effects.push({ kind: "answer_trailers" });
    effects.push({ kind: "end" });
    return effects;
  }

  #onHeaders(event: Extract<ExchangeEvent, { kind: "request_headers" }>): ExchangeEffect[] {
    if (this.#state !== "headers") return this.#fail("request headers came twice");
    this.#headers = event.headers;
    this.#mode = event.bodyMode;
    if (event.bodyMode === "unsupported") {
      return this.#fail(
        "request_body_mode must be BUFFERED, BUFFERED_PARTIAL or FULL_DUPLEX_STREAMED",
      );
    }
    if (event.endOfStream || event.bodyMode === "none") {
      this.#headersOnly = true;
      return this.#decide(noParts, !event.endOfStream);
    }
    this.#state = "body";
    return event.bodyMode === "full_duplex" ? [] : [{ kind: "continue_headers" }];
  }

  #onBody(body: Uint8Array, endOfStream: boolean): ExchangeEffect[] {
    if (this.#state === "headers") return this.#fail("a request body came before its headers");
    if (this.#state === "deciding") return [];
    this.#bodyBytes += body.length;
    if (this.#mode === "full_duplex") {
      if (body.length > 0) this.#store.add(body);
      return endOfStream ? this.#decide(this.#store.parts, false) : [];
    }
    const truncated = this.#mode === "buffered_partial" && !endOfStream;
    return this.#decide(body.length > 0 ? [body] : noParts, truncated);
  }

  #onTrailers(): ExchangeEffect[] {
    if (this.#state === "headers") return this.#fail("request trailers came before the headers");
    if (this.#state === "deciding" || this.#mode !== "full_duplex") return [];
    this.#trailers = true;
    return this.#decide(this.#store.parts, false);
  }

  #decide(body: readonly Uint8Array[], truncated: boolean): ExchangeEffect[] {
    this.#state = "deciding";
    const request = {
      headers: this.#headers,
      body,
      bodyBytes: this.#bodyBytes,
      truncated,
    };
    return [{ kind: "decide", request }];
  }

  #fail(reason: string): ExchangeEffect[] {
    this.#state = "done";
    return [{ kind: "fail", reason }];
  }

  *#pieces(body: readonly Uint8Array[]): Generator<Uint8Array> {
    let any = false;
    for (const chunk of body) {
      for (let at = 0; at < chunk.length; at += pieceBytesMax) {
        any = true;
        yield chunk.subarray(at, at + pieceBytesMax);
      }
    }
    // A direction must be closed by an end mark; a body that was empty still needs one piece to carry it.
    if (!any && !this.#trailers) yield new Uint8Array(0);
  }
}
