/** Wire types of the protobuf encoding that a cursor passes. */
export const wireType = { varint: 0, fixed64: 1, bytes: 2, fixed32: 5 } as const;

/**
 * Walks over the fields of one protobuf message in place, without copies or objects for each field.
 *
 * It takes only what an ordinary encoder writes: shortest varints below 2^53, field numbers from 1 to 2^28 − 1, wire
 * types 0, 1, 2 and 5, everything inside the message. Anything else sets `odd`: such a message is not wrong yet, a
 * complete decoder has to judge it. Reuse cursors: one for each level of nesting.
 */
export class FieldCursor {
  /** The buffer that holds the message. */
  bytes: Uint8Array = new Uint8Array(0);
  /** Number of the current field. */
  field = 0;
  /** Wire type of the current field. */
  wire = 0;
  /** Value of the current field when it is a varint. */
  value = 0;
  /** Where the value of the current field starts, unless it is a varint. */
  from = 0;
  /** Where the value of the current field ends. */
  to = 0;
  /** Whether something unusual was met; the walk has stopped there. */
  odd = false;
  #at = 0;
  #end = 0;

  /** Starts at the beginning of the message in `bytes[from..to)`. */
  enter(bytes: Uint8Array, from: number, to: number): void {
    this.bytes = bytes;
    this.#at = from;
    this.#end = to;
    this.odd = false;
  }

  /** Moves to the next field. False at the end of the message or when `odd`. */
  next(): boolean {
    const end = this.#end;
    if (this.#at >= end) return false;
    const bytes = this.bytes;
    let tag = bytes[this.#at++] as number;
    if (tag >= 0x80) {
      this.#at--;
      tag = this.#varint();
      if (tag < 0 || tag > 0x7fff_ffff) return this.#unusual();
    }
    const field = tag >>> 3;
    if (field === 0) return this.#unusual();
    this.field = field;
    const wire = tag & 7;
    this.wire = wire;
    if (wire === wireType.bytes || wire === wireType.varint) {
      // Most are short: one byte.
      let value = this.#at < end ? (bytes[this.#at++] as number) : -1;
      if (value >= 0x80) {
        this.#at--;
        value = this.#varint();
      }
      if (value < 0) return this.#unusual();
      if (wire === wireType.varint) {
        this.value = value;
        return true;
      }
      const to = this.#at + value;
      this.from = this.#at;
      this.to = to;
      this.#at = to;
      return to > end ? this.#unusual() : true;
    }
    if (wire !== wireType.fixed64 && wire !== wireType.fixed32) return this.#unusual();
    this.from = this.#at;
    this.to = this.#at += wire === wireType.fixed64 ? 8 : 4;
    return this.#at > end ? this.#unusual() : true;
  }

  /** Reads a varint; −1 when it is cut off, not the shortest or at least 2^53. */
  #varint(): number {
    const { bytes } = this;
    const end = this.#end;
    let at = this.#at;
    let value = 0;
    let scale = 1;
    for (let i = 0; i < 8; i++) {
      if (at >= end) return -1;
      const byte = bytes[at++] as number;
      if (byte < 0x80) {
        if (byte === 0 && i > 0) return -1;
        value += byte * scale;
        this.#at = at;
        return value <= Number.MAX_SAFE_INTEGER ? value : -1;
      }
      value += (byte & 0x7f) * scale;
      scale *= 128;
    }
    return -1;
  }

  #unusual(): false {
    this.odd = true;
    return false;
  }
}
