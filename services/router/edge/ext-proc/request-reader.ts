import { FieldCursor, wireType } from "../../../shared/core/protobuf/field-cursor.ts";
import { ShapeChecker } from "../../../shared/core/protobuf/message-shape.ts";
import { Metadata } from "../../../shared/gen/envoy/config/core/v3/base.ts";
import { ProcessingRequest } from "../../../shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import type { ExchangeEvent } from "../../core/exchange/exchange.ts";
import { bodyModeOf, readSubset, subsetNamespace, toEvent } from "./generated-messages.ts";
import { equalBytes, isAscii, latin1 } from "../byte-text.ts";
import { ListedHeaders, listedHeader } from "./listed-headers.ts";
import { attributesEntryShape, metadataShape, trailersShape } from "./request-shapes.ts";

/** Fields of ProcessingRequest that are read here. */
const field = {
  requestHeaders: 2,
  requestBody: 4,
  requestTrailers: 6,
  metadataContext: 8,
  attributes: 9,
  observabilityMode: 10,
  protocolConfig: 11,
} as const;

const subsetNamespaceBytes = Buffer.from(subsetNamespace);
const none = new Uint8Array(0);

/** What one message says. */
export interface ReadRequest {
  readonly event: ExchangeEvent;
  /** Endpoints that the choice is limited to. */
  readonly subset: ReadonlySet<string> | undefined;
}

/**
 * Reads ProcessingRequest messages in place: of headers the listed ones, of a body where it lies. Whatever an ordinary
 * encoder would not have written is judged by the generated decoder. One reader serves all streams of a process.
 */
export class RequestReader {
  readonly #message = new FieldCursor();
  readonly #part = new FieldCursor();
  readonly #list = new FieldCursor();
  readonly #entry = new FieldCursor();
  readonly #shapes = new ShapeChecker();
  #arm = 0;
  #armFrom = 0;
  #armTo = 0;
  #metadataFrom = 0;
  #metadataTo = 0;
  #sendMode = 0;

  /**
   * Reads one message. The body of the event is a view of `bytes`. Throws the generated decoder's error for bytes that
   * are no ProcessingRequest.
   */
  read(bytes: Uint8Array): ReadRequest {
    const event = this.readOrdinary(bytes);
    if (event !== undefined) return { event, subset: this.#subset(bytes) };
    const request = ProcessingRequest.decode(bytes);
    return { event: toEvent(request), subset: readSubset(request.metadataContext) };
  }

  /** Reads a message that an ordinary encoder wrote; `undefined` for any other, also for parts of responses. */
  readOrdinary(bytes: Uint8Array): ExchangeEvent | undefined {
    if (!this.#split(bytes)) return undefined;
    switch (this.#arm) {
      case field.requestHeaders:
        return this.#headers(bytes);
      case field.requestBody:
        return this.#body(bytes);
      case field.requestTrailers:
        return this.#shapes.isOrdinary(trailersShape, bytes, this.#armFrom, this.#armTo)
          ? { kind: "request_trailers" }
          : undefined;
      default:
        return undefined;
    }
  }

  /** Finds the parts of the message. */
  #split(bytes: Uint8Array): boolean {
    this.#arm = 0;
    this.#metadataFrom = 0;
    this.#metadataTo = 0;
    this.#sendMode = 0;
    let seen = 0;
    const m = this.#message;
    m.enter(bytes, 0, bytes.length);
    while (m.next()) {
      if (m.field > field.protocolConfig) continue;
      const expected = m.field === field.observabilityMode ? wireType.varint : wireType.bytes;
      if (m.field === 1) continue;
      if (m.wire !== expected) return false;
      if (m.field === field.attributes) {
        if (!this.#shapes.isOrdinary(attributesEntryShape, bytes, m.from, m.to)) return false;
        continue;
      }
      const bit = m.field < field.metadataContext ? 1 : 1 << m.field;
      if ((seen & bit) !== 0) return false;
      seen |= bit;
      if (m.field < field.metadataContext) {
        this.#arm = m.field;
        this.#armFrom = m.from;
        this.#armTo = m.to;
      } else if (m.field === field.metadataContext) {
        if (!this.#shapes.isOrdinary(metadataShape, bytes, m.from, m.to)) return false;
        this.#metadataFrom = m.from;
        this.#metadataTo = m.to;
      } else if (m.field === field.protocolConfig && !this.#protocolConfig(bytes, m)) return false;
    }
    return !m.odd;
  }

  #protocolConfig(bytes: Uint8Array, message: FieldCursor): boolean {
    const p = this.#part;
    p.enter(bytes, message.from, message.to);
    let seen = 0;
    while (p.next()) {
      if (p.field > 3) continue;
      if (p.wire !== wireType.varint || p.value > 127 || (seen & (1 << p.field)) !== 0)
        return false;
      seen |= 1 << p.field;
      if (p.field === 1) this.#sendMode = p.value;
    }
    return !p.odd;
  }

  #headers(bytes: Uint8Array): ExchangeEvent | undefined {
    const p = this.#part;
    p.enter(bytes, this.#armFrom, this.#armTo);
    const headers = new ListedHeaders();
    let endOfStream = false;
    let seen = 0;
    while (p.next()) {
      if (p.field !== 1 && p.field !== 3) continue;
      if ((seen & (1 << p.field)) !== 0) return undefined;
      seen |= 1 << p.field;
      if (p.field === 1) {
        if (p.wire !== wireType.bytes || !this.#headerMap(bytes, p.from, p.to, headers)) {
          return undefined;
        }
      } else {
        if (p.wire !== wireType.varint) return undefined;
        endOfStream = p.value !== 0;
      }
    }
    if (p.odd) return undefined;
    return { kind: "request_headers", headers, endOfStream, bodyMode: bodyModeOf(this.#sendMode) };
  }

  #headerMap(bytes: Uint8Array, from: number, to: number, headers: ListedHeaders): boolean {
    return readPlainList(bytes, from, to, headers) || this.#anyList(bytes, from, to, headers);
  }

  #anyList(bytes: Uint8Array, from: number, to: number, headers: ListedHeaders): boolean {
    const list = this.#list;
    list.enter(bytes, from, to);
    while (list.next()) {
      if (list.field !== 1) continue;
      if (list.wire !== wireType.bytes) return false;
      if (!this.#header(bytes, list.from, list.to, headers)) return false;
    }
    return !list.odd;
  }

  #header(bytes: Uint8Array, from: number, to: number, headers: ListedHeaders): boolean {
    const e = this.#entry;
    e.enter(bytes, from, to);
    let index = -1;
    let seen = 0;
    let textFrom = 0;
    let textTo = 0;
    let rawFrom = 0;
    let rawTo = 0;
    while (e.next()) {
      if (e.field > 3) continue;
      if (e.wire !== wireType.bytes || (seen & (1 << e.field)) !== 0) return false;
      seen |= 1 << e.field;
      if (e.field === 1) {
        if (!isLowerAscii(bytes, e.from, e.to)) return false;
        index = listedHeader(bytes, e.from, e.to);
      } else if (e.field === 2) {
        textFrom = e.from;
        textTo = e.to;
      } else {
        rawFrom = e.from;
        rawTo = e.to;
      }
    }
    if (e.odd) return false;
    if (index < 0) return true;
    if (rawTo > rawFrom) headers.set(index, latin1(bytes, rawFrom, rawTo));
    else if (isAscii(bytes, textFrom, textTo)) headers.set(index, latin1(bytes, textFrom, textTo));
    else return false;
    return true;
  }

  #body(bytes: Uint8Array): ExchangeEvent | undefined {
    const p = this.#part;
    p.enter(bytes, this.#armFrom, this.#armTo);
    let from = 0;
    let to = 0;
    let endOfStream = false;
    let seen = 0;
    while (p.next()) {
      if (p.field > 4) continue;
      const expected = p.field === 1 ? wireType.bytes : wireType.varint;
      if (p.wire !== expected || (seen & (1 << p.field)) !== 0) return undefined;
      seen |= 1 << p.field;
      if (p.field === 1) {
        from = p.from;
        to = p.to;
      } else if (p.field === 2) endOfStream = p.value !== 0;
    }
    if (p.odd) return undefined;
    const body = to > from ? bytes.subarray(from, to) : none;
    return { kind: "request_body", body, endOfStream };
  }

  /** The subset hint of a message that was read. */
  #subset(bytes: Uint8Array): ReadonlySet<string> | undefined {
    if (this.#metadataTo === this.#metadataFrom) return undefined;
    const namespaces = this.#list;
    namespaces.enter(bytes, this.#metadataFrom, this.#metadataTo);
    while (namespaces.next()) {
      if (namespaces.field !== 1) continue;
      const entry = this.#entry;
      entry.enter(bytes, namespaces.from, namespaces.to);
      while (entry.next()) {
        if (entry.field !== 1 || !equalBytes(bytes, entry.from, entry.to, subsetNamespaceBytes))
          continue;
        const metadata = bytes.subarray(this.#metadataFrom, this.#metadataTo);
        return readSubset(Metadata.decode(metadata));
      }
    }
    return undefined;
  }
}

/**
 * Reads a list of headers in the one form that Envoy writes: each a name below 128 bytes, then a raw value. False,
 * perhaps with some headers set, when there is any other; the list is then read anew from its start.
 */
function readPlainList(
  bytes: Uint8Array,
  from: number,
  to: number,
  headers: ListedHeaders,
): boolean {
  let at = from;
  while (at < to) {
    if (bytes[at] !== 0x0a) return false;
    let length = bytes[at + 1] as number;
    at += 2;
    if (length > 0x7f) {
      const high = bytes[at++] as number;
      if (high === 0 || high > 0x7f) return false;
      length = (length & 0x7f) | (high << 7);
    }
    const end = at + length;
    const nameFrom = at + 2;
    const nameLength = bytes[at + 1] as number;
    const nameTo = nameFrom + nameLength;
    if (bytes[at] !== 0x0a || nameLength > 0x7f || nameTo + 2 > end || end > to) return false;
    if (bytes[nameTo] !== 0x1a) return false;
    let valueLength = bytes[nameTo + 1] as number;
    at = nameTo + 2;
    if (valueLength > 0x7f) {
      const high = bytes[at++] as number;
      if (high === 0 || high > 0x7f) return false;
      valueLength = (valueLength & 0x7f) | (high << 7);
    }
    if (valueLength === 0 || at + valueLength !== end) return false;
    if (!isLowerAscii(bytes, nameFrom, nameTo)) return false;
    const index = listedHeader(bytes, nameFrom, nameTo);
    if (index >= 0) headers.set(index, latin1(bytes, at, end));
    at = end;
  }
  return true;
}

/** Whether a name is ASCII without capitals, so that nothing has to be done to compare it. */
function isLowerAscii(bytes: Uint8Array, from: number, to: number): boolean {
  for (let i = from; i < to; i++) {
    const byte = bytes[i] as number;
    if (byte > 0x7f || (byte >= 0x41 && byte <= 0x5a)) return false;
  }
  return true;
}
