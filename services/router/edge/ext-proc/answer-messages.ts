import { BackwardWriter } from "../../../shared/core/protobuf/backward-writer.ts";
import type { ImmediateAnswer, RoutingAnswer } from "../../core/exchange/exchange.ts";

/** Bytes that must be free before a body piece for the message around it. */
export const pieceHeadBytesMax = 32;

/** Field tags of the messages written here: field number × 8 + 2 for what has a length, × 8 for numbers. */
const tag = {
  response: {
    requestHeaders: 0x0a,
    requestBody: 0x1a,
    immediate: 0x3a,
    metadata: 0x42,
    timeout: 0x52,
  },
  part: { response: 0x0a },
  common: { headerMutation: 0x12, bodyMutation: 0x1a },
  bodyMutation: { streamed: 0x1a },
  mutation: { setHeaders: 0x0a, removeHeaders: 0x12 },
  option: { header: 0x0a },
  header: { key: 0x0a, rawValue: 0x1a },
  immediate: { status: 0x0a, headers: 0x12, body: 0x1a, grpcStatus: 0x22, details: 0x2a },
  number: { first: 0x08, second: 0x10 },
  struct: { fields: 0x0a },
  entry: { key: 0x0a, value: 0x12 },
  value: { text: 0x1a, struct: 0x2a },
  streamed: { body: 0x0a },
} as const;

/** ProcessingResponse {request_headers {response {}}}. */
const continueHeaders = Uint8Array.of(0x0a, 0x02, 0x0a, 0x00);
/** ProcessingResponse {request_trailers {}}. */
const passTrailers = Uint8Array.of(0x2a, 0x00);
/** HeaderValueOption {append_action: OVERWRITE_IF_EXISTS_OR_ADD}. */
const overwrite = Uint8Array.of(0x18, 0x02);
/** CommonResponse {clear_route_cache: true}. */
const clearRouteCache = Uint8Array.of(0x28, 0x01);

/**
 * Answers as ProcessingResponse messages, written straight from the answer. Each method returns a view that is only
 * valid until the next call.
 */
export class AnswerMessages {
  readonly #w = new BackwardWriter();

  /** The headers go on as they are. */
  continueHeaders(): Uint8Array {
    return continueHeaders;
  }

  /** Trailers pass. */
  passTrailers(): Uint8Array {
    return passTrailers;
  }

  /** The routing answer to headers or to a body. */
  route(to: "requestHeaders" | "requestBody", answer: RoutingAnswer): Uint8Array {
    const w = this.#w;
    w.start();
    this.#metadata(answer.metadata);
    const part = w.length;
    w.bytes(clearRouteCache);
    const mutation = w.length;
    const { removeHeaders } = answer;
    for (let i = removeHeaders.length - 1; i >= 0; i--) {
      w.textField(tag.mutation.removeHeaders, removeHeaders[i] as string);
    }
    this.#setHeaders(answer.setHeaders);
    w.prefix(tag.common.headerMutation, mutation);
    w.prefix(tag.part.response, part);
    w.prefix(tag.response[to], part);
    return w.finish();
  }

  /** An answer to the client. */
  immediate(answer: ImmediateAnswer): Uint8Array {
    const w = this.#w;
    w.start();
    w.textField(tag.immediate.details, answer.details);
    this.#number(tag.immediate.grpcStatus, answer.grpcStatus);
    w.textField(tag.immediate.body, answer.body);
    const headers = w.length;
    this.#setHeaders(answer.headers);
    w.prefix(tag.immediate.headers, headers);
    this.#number(tag.immediate.status, answer.status);
    w.prefix(tag.response.immediate, 0);
    return w.finish();
  }

  /** Restarts the timer of the pending message, ms. */
  extendTimeout(ms: number): Uint8Array {
    const whole = Math.max(1, Math.ceil(ms));
    const seconds = Math.floor(whole / 1_000);
    const w = this.#w;
    w.start();
    w.varint((whole - seconds * 1_000) * 1_000_000);
    w.varint(tag.number.second);
    w.varint(seconds);
    w.varint(tag.number.first);
    w.prefix(tag.response.timeout, 0);
    return w.finish();
  }

  #number(field: number, value: number): void {
    const before = this.#w.length;
    this.#w.varint(value);
    this.#w.varint(tag.number.first);
    this.#w.prefix(field, before);
  }

  #setHeaders(headers: readonly (readonly [name: string, value: string])[]): void {
    const w = this.#w;
    for (let i = headers.length - 1; i >= 0; i--) {
      const [name, value] = headers[i] as readonly [string, string];
      const option = w.length;
      w.bytes(overwrite);
      const header = w.length;
      w.textField(tag.header.rawValue, value);
      w.textField(tag.header.key, name);
      w.prefix(tag.option.header, header);
      w.prefix(tag.mutation.setHeaders, option);
    }
  }

  #metadata(namespaces: RoutingAnswer["metadata"]): void {
    const w = this.#w;
    for (const namespace in namespaces) {
      const entry = w.length;
      const fields = namespaces[namespace];
      for (const key in fields) {
        const field = w.length;
        w.textField(tag.value.text, fields[key] as string);
        w.prefix(tag.entry.value, field);
        w.textField(tag.entry.key, key);
        w.prefix(tag.struct.fields, field);
      }
      w.prefix(tag.value.struct, entry);
      w.prefix(tag.entry.value, entry);
      w.textField(tag.entry.key, namespace);
      w.prefix(tag.struct.fields, entry);
    }
    w.prefix(tag.response.metadata, 0);
  }
}

/**
 * Writes the message around a body piece into the bytes before it, so that a piece of `length` bytes at `pieceAt` of
 * `bytes` becomes a whole message without being copied. At least `pieceHeadBytesMax` bytes before `pieceAt` must be
 * free. Returns where the message starts; it ends with the piece.
 */
export function writePieceHead(
  bytes: Uint8Array,
  pieceAt: number,
  length: number,
  endOfStream: boolean,
): number {
  const end = pieceAt + length;
  let at = putLength(bytes, pieceAt, length, tag.streamed.body);
  if (endOfStream) {
    bytes[--at] = 1;
    bytes[--at] = tag.number.second;
  }
  at = putLength(bytes, at, end - at, tag.bodyMutation.streamed);
  at = putLength(bytes, at, end - at, tag.common.bodyMutation);
  at = putLength(bytes, at, end - at, tag.part.response);
  return putLength(bytes, at, end - at, tag.response.requestBody);
}

function putLength(bytes: Uint8Array, at: number, length: number, fieldTag: number): number {
  let size = 1;
  for (let rest = length >>> 7; rest > 0; rest >>>= 7) size++;
  let start = at - size;
  let rest = length;
  for (let i = start; i < at; i++) {
    bytes[i] = i === at - 1 ? rest : (rest & 0x7f) | 0x80;
    rest >>>= 7;
  }
  bytes[--start] = fieldTag;
  return start;
}
