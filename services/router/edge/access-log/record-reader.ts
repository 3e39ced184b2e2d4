import { FieldCursor, wireType } from "../../../shared/core/protobuf/field-cursor.ts";
import { ShapeChecker } from "../../../shared/core/protobuf/message-shape.ts";
import {
  durationShape,
  structShape,
  valueShape,
} from "../../../shared/core/protobuf/well-known-shapes.ts";
import { StreamAccessLogsMessage } from "../../../shared/gen/envoy/service/accesslog/v3/als.ts";
import { equalBytes, isAscii, latin1 } from "../byte-text.ts";
import {
  endpointText,
  flagNames,
  readAccessRecord,
  recordKeys,
  type AccessRecord,
} from "./access-record.ts";
import { addressShape, anyEntryShape, textEntryShape } from "./record-shapes.ts";

const keyBytes = Object.fromEntries(
  Object.entries(recordKeys).map(([name, text]) => [name, Buffer.from(text)]),
) as Record<string, Uint8Array> as Readonly<Record<keyof typeof recordKeys, Uint8Array>>;

/** Times beyond this, s, are left to the generated decoder: the year 3058. */
const secondsMax = 2 ** 35;
const int32Max = 0x7fff_ffff;

/** Wire types of AccessLogCommon's fields by number; −1 where there is none. */
const commonWire: readonly number[] = Array.from({ length: 34 }, (_, field) => {
  if (field === 24 || field === 33) return wireType.varint;
  const isUnused = [0, 1, 4, 14, 20, 25].includes(field) || (field >= 27 && field <= 32);
  return isUnused ? -1 : wireType.bytes;
});

/** What has been read of the current record. */
class RecordParts {
  decisionId = "";
  requestId = "";
  traceparent = "";
  predictedTtftMs = "";
  workerId = "";
  picked = "";
  cluster = "";
  codeDetails = "";
  servedEndpoint = "";
  status = 0;
  /** Bit n for field n of ResponseFlags. */
  flags = 0;
  attempts = 0;
  responseBytes = 0;
  ttftUs = Number.NaN;
  durationMs = 0;
  startUnixMs = 0;
  uploadMs = 0;
  upstreamStartMs = 0;
  responseHeadersMs = 0;

  record(): AccessRecord {
    const { ttftUs, picked } = this;
    return {
      decisionId: this.decisionId,
      traceparent: this.traceparent,
      predictedTtftMs: Number(this.predictedTtftMs) || 0,
      workerId: this.workerId,
      requestId: this.requestId,
      picked: picked === "" ? [] : picked.split(","),
      cluster: this.cluster,
      codeDetails: this.codeDetails,
      servedEndpoint: this.servedEndpoint,
      status: this.status,
      responseFlags: this.flags === 0 ? "" : flagText(this.flags),
      attempts: this.attempts,
      responseBytes: this.responseBytes,
      ttftMs: Number.isFinite(ttftUs) ? ttftUs / 1_000 : 0,
      durationMs: this.durationMs,
      startUnixUs: Math.trunc(this.startUnixMs) * 1_000,
      uploadMs: this.uploadMs,
      upstreamStartMs: this.upstreamStartMs,
      responseHeadersMs: this.responseHeadersMs,
    };
  }
}

function flagText(flags: number): string {
  const names: string[] = [];
  for (const [, number, name] of flagNames) if ((flags & (1 << number)) !== 0) names.push(name);
  return names.join(",");
}

/**
 * Reads StreamAccessLogsMessage messages in place: only what an `AccessRecord` needs. Whatever an ordinary encoder
 * would not have written, and the first message of a stream with its long description of the Envoy, is read by the
 * generated decoder. One reader serves all streams of a process.
 *
 * Methods that return false have met something for the generated decoder.
 */
export class RecordReader {
  readonly #message = new FieldCursor();
  readonly #list = new FieldCursor();
  readonly #entry = new FieldCursor();
  readonly #common = new FieldCursor();
  readonly #part = new FieldCursor();
  readonly #inner = new FieldCursor();
  readonly #innermost = new FieldCursor();
  readonly #value = new FieldCursor();
  readonly #shapes = new ShapeChecker();
  #parts = new RecordParts();
  /** Result of `#time`, ms. */
  #ms = 0;
  /** Result of `#ascii` and `#structText`. */
  #text = "";

  /** The records of one message. Throws the generated decoder's error for bytes that are no such message. */
  read(bytes: Uint8Array): readonly AccessRecord[] {
    const ordinary = this.readOrdinary(bytes);
    if (ordinary !== undefined) return ordinary;
    const { logEntries } = StreamAccessLogsMessage.decode(bytes);
    return logEntries === undefined ? [] : logEntries.value.logEntry.map(readAccessRecord);
  }

  /** The records of a message that an ordinary encoder wrote; `undefined` for any other. */
  readOrdinary(bytes: Uint8Array): readonly AccessRecord[] | undefined {
    const records: AccessRecord[] = [];
    const m = this.#message;
    m.enter(bytes, 0, bytes.length);
    let seen = false;
    while (m.next()) {
      if (m.field > 2) continue;
      if (m.field === 1 || m.wire !== wireType.bytes || seen) return undefined;
      seen = true;
      if (!this.#entries(bytes, m.from, m.to, records)) return undefined;
    }
    return m.odd ? undefined : records;
  }

  #entries(bytes: Uint8Array, from: number, to: number, records: AccessRecord[]): boolean {
    const list = this.#list;
    list.enter(bytes, from, to);
    while (list.next()) {
      if (list.field !== 1) continue;
      if (list.wire !== wireType.bytes) return false;
      this.#parts = new RecordParts();
      if (!this.#record(bytes, list.from, list.to)) return false;
      records.push(this.#parts.record());
    }
    return !list.odd;
  }

  #record(bytes: Uint8Array, from: number, to: number): boolean {
    const e = this.#entry;
    e.enter(bytes, from, to);
    let seen = 0;
    while (e.next()) {
      if (e.field > 4) continue;
      const expected = e.field === 2 ? wireType.varint : wireType.bytes;
      if (e.wire !== expected || (seen & (1 << e.field)) !== 0) return false;
      seen |= 1 << e.field;
      if (e.field === 1 && !this.#commonProperties(bytes, e.from, e.to)) return false;
      if (e.field === 3 && !this.#request(bytes, e.from, e.to)) return false;
      if (e.field === 4 && !this.#response(bytes, e.from, e.to)) return false;
    }
    return !e.odd;
  }

  #commonProperties(bytes: Uint8Array, from: number, to: number): boolean {
    const c = this.#common;
    c.enter(bytes, from, to);
    const parts = this.#parts;
    let seen = 0;
    let seenTag = false;
    while (c.next()) {
      const { field } = c;
      const expected = field < commonWire.length ? (commonWire[field] as number) : -1;
      if (expected < 0) continue;
      if (c.wire !== expected) return false;
      const { from: at, to: end } = c;
      if (field === 21) {
        if (!this.#shapes.isOrdinary(anyEntryShape, bytes, at, end)) return false;
        continue;
      }
      if (field === 22) {
        if (!this.#customTag(bytes, at, end)) return false;
        if (this.#text === "") continue;
        if (seenTag) return false;
        seenTag = true;
        parts.ttftUs = Number(this.#text);
        continue;
      }
      const bit = 1 << (field & 31);
      if (field === 33) continue;
      if ((seen & bit) !== 0) return false;
      seen |= bit;
      switch (field) {
        case 2:
        case 3:
          if (!this.#shapes.isOrdinary(addressShape, bytes, at, end)) return false;
          break;
        case 5:
          if (!this.#time(bytes, at, end)) return false;
          parts.startUnixMs = this.#ms;
          break;
        case 6:
          if (!this.#time(bytes, at, end)) return false;
          parts.uploadMs = this.#ms;
          break;
        case 7:
          if (!this.#time(bytes, at, end)) return false;
          parts.upstreamStartMs = this.#ms;
          break;
        case 9:
          if (!this.#time(bytes, at, end)) return false;
          parts.responseHeadersMs = this.#ms;
          break;
        case 23:
          if (!this.#time(bytes, at, end)) return false;
          parts.durationMs = this.#ms;
          break;
        case 8:
        case 10:
        case 11:
        case 12:
          if (readPlainTime(bytes, at, end) >= 0) break;
          if (!this.#shapes.isOrdinary(durationShape, bytes, at, end)) return false;
          break;
        case 13:
          if (!this.#servedEndpoint(bytes, at, end)) return false;
          break;
        case 15:
          if (!this.#ascii(bytes, at, end)) return false;
          parts.cluster = this.#text;
          break;
        case 16:
          if (!this.#responseFlags(bytes, at, end)) return false;
          break;
        case 17:
          if (!this.#metadata(bytes, at, end)) return false;
          break;
        case 24:
          if (c.value > int32Max) return false;
          parts.attempts = c.value;
          break;
      }
    }
    return !c.odd;
  }

  #request(bytes: Uint8Array, from: number, to: number): boolean {
    const p = this.#part;
    p.enter(bytes, from, to);
    let seen = 0;
    while (p.next()) {
      const { field } = p;
      if (field > 13 || field === 4 || field === 7 || field === 8 || field === 10) continue;
      const isNumber = field === 1 || field === 11 || field === 12;
      if (p.wire !== (isNumber ? wireType.varint : wireType.bytes)) return false;
      if (field === 13) {
        if (!this.#shapes.isOrdinary(textEntryShape, bytes, p.from, p.to)) return false;
        continue;
      }
      if ((seen & (1 << field)) !== 0) return false;
      seen |= 1 << field;
      if (field !== 9) continue;
      if (!this.#ascii(bytes, p.from, p.to)) return false;
      this.#parts.requestId = this.#text;
    }
    return !p.odd;
  }

  #response(bytes: Uint8Array, from: number, to: number): boolean {
    const p = this.#part;
    p.enter(bytes, from, to);
    let seen = 0;
    while (p.next()) {
      const { field } = p;
      if (field > 6 || field === 5) continue;
      const isNumber = field === 2 || field === 3;
      if (p.wire !== (isNumber ? wireType.varint : wireType.bytes)) return false;
      if (field === 4) {
        if (!this.#shapes.isOrdinary(textEntryShape, bytes, p.from, p.to)) return false;
        continue;
      }
      if ((seen & (1 << field)) !== 0) return false;
      seen |= 1 << field;
      if (field === 1) {
        if (!this.#wrapped(bytes, p.from, p.to)) return false;
      } else if (field === 3) {
        this.#parts.responseBytes = p.value;
      } else if (field === 6) {
        if (!this.#ascii(bytes, p.from, p.to)) return false;
        this.#parts.codeDetails = this.#text;
      }
    }
    return !p.odd;
  }

  /** The status, in a UInt32Value. */
  #wrapped(bytes: Uint8Array, from: number, to: number): boolean {
    const i = this.#inner;
    i.enter(bytes, from, to);
    let seen = false;
    while (i.next()) {
      if (i.field !== 1) continue;
      if (i.wire !== wireType.varint || i.value > int32Max || seen) return false;
      seen = true;
      this.#parts.status = i.value;
    }
    return !i.odd;
  }

  #time(bytes: Uint8Array, from: number, to: number): boolean {
    this.#ms = readPlainTime(bytes, from, to);
    return this.#ms >= 0 || this.#anyTime(bytes, from, to);
  }

  #anyTime(bytes: Uint8Array, from: number, to: number): boolean {
    const i = this.#inner;
    i.enter(bytes, from, to);
    let seconds = 0;
    let nanos = 0;
    let seen = 0;
    while (i.next()) {
      if (i.field > 2) continue;
      if (i.wire !== wireType.varint || (seen & i.field) !== 0) return false;
      seen |= i.field;
      if (i.field === 1) seconds = i.value;
      else nanos = i.value;
    }
    if (i.odd || seconds > secondsMax || nanos > int32Max) return false;
    this.#ms = seconds * 1_000 + nanos / 1_000_000;
    return true;
  }

  #servedEndpoint(bytes: Uint8Array, from: number, to: number): boolean {
    const i = this.#inner;
    i.enter(bytes, from, to);
    let seen = false;
    while (i.next()) {
      if (i.field > 2) continue;
      // Engines have socket addresses; a pipe is for the generated decoder.
      if (i.field !== 1 || i.wire !== wireType.bytes || seen) return false;
      seen = true;
      if (!this.#socketAddress(bytes, i.from, i.to)) return false;
    }
    return !i.odd;
  }

  #socketAddress(bytes: Uint8Array, from: number, to: number): boolean {
    const s = this.#innermost;
    s.enter(bytes, from, to);
    let host = "";
    let port = 0;
    let seen = 0;
    while (s.next()) {
      if (s.field > 4) continue;
      const isNumber = s.field === 1 || s.field === 3;
      if (s.field === 4 || s.wire !== (isNumber ? wireType.varint : wireType.bytes)) return false;
      if ((seen & (1 << s.field)) !== 0) return false;
      seen |= 1 << s.field;
      if (s.field === 2) {
        if (!this.#ascii(bytes, s.from, s.to)) return false;
        host = this.#text;
      } else if (s.field === 3) {
        if (s.value > int32Max) return false;
        port = s.value;
      }
    }
    if (s.odd) return false;
    this.#parts.servedEndpoint = endpointText(host, port);
    return true;
  }

  #responseFlags(bytes: Uint8Array, from: number, to: number): boolean {
    const i = this.#inner;
    i.enter(bytes, from, to);
    let seen = 0;
    let flags = 0;
    while (i.next()) {
      if (i.field > 28) continue;
      if (i.wire === wireType.varint) {
        const bit = 1 << i.field;
        if ((seen & bit) !== 0) return false;
        seen |= bit;
        if (i.value !== 0) flags |= bit;
      } else return false;
    }
    this.#parts.flags = flags;
    return !i.odd;
  }

  /** A custom tag; leaves the text of the one that is read, or nothing. */
  #customTag(bytes: Uint8Array, from: number, to: number): boolean {
    const i = this.#inner;
    i.enter(bytes, from, to);
    let isTtft = false;
    let valueFrom = 0;
    let valueTo = 0;
    let seen = 0;
    while (i.next()) {
      if (i.field > 2) continue;
      if (i.wire !== wireType.bytes || (seen & i.field) !== 0) return false;
      seen |= i.field;
      if (i.field === 1) isTtft = equalBytes(bytes, i.from, i.to, keyBytes.ttftUs);
      else {
        valueFrom = i.from;
        valueTo = i.to;
      }
    }
    if (i.odd) return false;
    this.#text = "";
    // An empty value of this tag means 0 to the generated reader; leave it to that one.
    return !isTtft || (valueTo > valueFrom && this.#ascii(bytes, valueFrom, valueTo));
  }

  #metadata(bytes: Uint8Array, from: number, to: number): boolean {
    const i = this.#inner;
    i.enter(bytes, from, to);
    let seen = 0;
    while (i.next()) {
      if (i.field > 2) continue;
      if (i.wire !== wireType.bytes) return false;
      if (i.field === 2) {
        if (!this.#shapes.isOrdinary(anyEntryShape, bytes, i.from, i.to)) return false;
        continue;
      }
      const namespace = this.#namespace(bytes, i.from, i.to);
      if (namespace < 0 || (seen & namespace) !== 0) return false;
      seen |= namespace;
    }
    return !i.odd;
  }

  /** Reads an entry of the metadata: 1 the mesh's namespace, 2 the one for load balancing, 0 another, −1 unusual. */
  #namespace(bytes: Uint8Array, from: number, to: number): number {
    const e = this.#innermost;
    e.enter(bytes, from, to);
    let which = 0;
    let structFrom = 0;
    let structTo = -1;
    let seen = 0;
    while (e.next()) {
      if (e.field > 2) continue;
      if (e.wire !== wireType.bytes || (seen & e.field) !== 0) return -1;
      seen |= e.field;
      if (e.field === 1) {
        if (equalBytes(bytes, e.from, e.to, keyBytes.mesh)) which = 1;
        else if (equalBytes(bytes, e.from, e.to, keyBytes.loadBalancing)) which = 2;
      } else {
        structFrom = e.from;
        structTo = e.to;
      }
    }
    if (e.odd) return -1;
    if (structTo < 0) return which === 0 ? 0 : -1;
    if (which === 0) {
      return this.#shapes.isOrdinary(structShape, bytes, structFrom, structTo) ? 0 : -1;
    }
    return this.#struct(bytes, structFrom, structTo, which) ? which : -1;
  }

  /** Reads the texts of a namespace that the router wrote. */
  #struct(bytes: Uint8Array, from: number, to: number, which: number): boolean {
    const fields = this.#innermost;
    const parts = this.#parts;
    fields.enter(bytes, from, to);
    let seen = 0;
    while (fields.next()) {
      if (fields.field !== 1) continue;
      if (fields.wire !== wireType.bytes) return false;
      const key = this.#structText(bytes, fields.from, fields.to, which);
      if (key < 0 || (seen & (1 << key)) !== 0) return false;
      if (key > 0) seen |= 1 << key;
      if (key === 1) parts.decisionId = this.#text;
      else if (key === 2) parts.traceparent = this.#text;
      else if (key === 3) parts.predictedTtftMs = this.#text;
      else if (key === 4) parts.workerId = this.#text;
      else if (key === 5) parts.picked = this.#text;
    }
    return !fields.odd;
  }

  /** Reads an entry of a Struct: which key of ours it is, from 1, 0 for another, −1 when its value is no plain text. */
  #structText(bytes: Uint8Array, from: number, to: number, which: number): number {
    const v = this.#value;
    v.enter(bytes, from, to);
    let key = 0;
    let valueFrom = 0;
    let valueTo = -1;
    let seen = 0;
    while (v.next()) {
      if (v.field > 2) continue;
      if (v.wire !== wireType.bytes || (seen & v.field) !== 0) return -1;
      seen |= v.field;
      if (v.field === 1) key = keyOf(bytes, v.from, v.to, which);
      else {
        valueFrom = v.from;
        valueTo = v.to;
      }
    }
    if (v.odd) return -1;
    if (key === 0) {
      if (valueTo < 0) return 0;
      return this.#shapes.isOrdinary(valueShape, bytes, valueFrom, valueTo) ? 0 : -1;
    }
    v.enter(bytes, valueFrom, valueTo);
    if (!v.next() || v.field !== 3 || v.wire !== wireType.bytes) return -1;
    const { from: textFrom, to: textTo } = v;
    // The text is all that there is.
    return textTo === valueTo && this.#ascii(bytes, textFrom, textTo) ? key : -1;
  }

  #ascii(bytes: Uint8Array, from: number, to: number): boolean {
    if (!isAscii(bytes, from, to)) return false;
    this.#text = latin1(bytes, from, to);
    return true;
  }
}

/**
 * Reads a Duration or Timestamp in the form that encoders write: seconds, then nanoseconds, each left out when 0. In ms;
 * −1 for any other form and for times out of the ordinary.
 */
function readPlainTime(bytes: Uint8Array, from: number, to: number): number {
  let at = from;
  let seconds = 0;
  let nanos = 0;
  for (let field = 0x08; field <= 0x10 && at < to; field += 8) {
    if (bytes[at] !== field) continue;
    at++;
    let value = 0;
    let scale = 1;
    let byte = 0x80;
    while (byte >= 0x80) {
      if (at >= to || scale > 2 ** 28) return -1;
      byte = bytes[at++] as number;
      value += (byte & 0x7f) * scale;
      scale *= 128;
    }
    if (byte === 0) return -1;
    if (field === 0x08) seconds = value;
    else nanos = value;
  }
  if (at !== to || seconds > secondsMax || nanos > int32Max) return -1;
  return seconds * 1_000 + nanos / 1_000_000;
}

/** Which key of ours a text is, from 1; 0 for any other. */
function keyOf(bytes: Uint8Array, from: number, to: number, which: number): number {
  if (which === 2) return equalBytes(bytes, from, to, keyBytes.destination) ? 5 : 0;
  if (equalBytes(bytes, from, to, keyBytes.decision)) return 1;
  if (equalBytes(bytes, from, to, keyBytes.traceparent)) return 2;
  if (equalBytes(bytes, from, to, keyBytes.predictedTtftMs)) return 3;
  return equalBytes(bytes, from, to, keyBytes.worker) ? 4 : 0;
}
