import type { HeaderField } from "./header-field.ts";

const slots = 16;
const octetsMax = 96;

/**
 * Fields of the last literals that a client did not index, by their encoded octets. Clients send some fields that way
 * on every request (nghttp2, and so Envoy, never indexes `:path`). A literal that names a table entry is not kept,
 * unless the entry is a static one, since the table may change.
 */
export class LiteralCache {
  readonly #octets = new Uint8Array(slots * octetsMax);
  readonly #lengths = new Int32Array(slots);
  readonly #fields: (HeaderField | undefined)[] = new Array<HeaderField | undefined>(slots).fill(
    undefined,
  );

  #slot(bytes: Uint8Array, start: number, length: number): number {
    const last = bytes[start + length - 1] as number;
    return ((bytes[start] as number) ^ (length * 5) ^ (last * 3)) & (slots - 1);
  }

  /** The field in `bytes[start, start + length)`, if that is one of the last. */
  find(bytes: Uint8Array, start: number, length: number): HeaderField | undefined {
    if (length > octetsMax) return undefined;
    const slot = this.#slot(bytes, start, length);
    if (this.#lengths[slot] !== length) return undefined;
    const octets = this.#octets;
    const from = slot * octetsMax;
    for (let i = 0; i < length; i++) if (bytes[start + i] !== octets[from + i]) return undefined;
    return this.#fields[slot];
  }

  keep(bytes: Uint8Array, start: number, length: number, field: HeaderField): void {
    if (length > octetsMax) return;
    const slot = this.#slot(bytes, start, length);
    const from = slot * octetsMax;
    for (let i = 0; i < length; i++) this.#octets[from + i] = bytes[start + i] as number;
    this.#lengths[slot] = length;
    this.#fields[slot] = field;
  }
}
