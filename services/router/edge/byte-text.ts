/** Node's own decoder, which works on any byte view; its types only know it on Buffer. */
const { latin1Slice } = Buffer.prototype as unknown as {
  readonly latin1Slice: (this: Uint8Array, from: number, to: number) => string;
};

/** `bytes[from..to)` as text, one character for each byte. */
export function latin1(bytes: Uint8Array, from: number, to: number): string {
  return from === to ? "" : latin1Slice.call(bytes, from, to);
}

/** Whether `bytes[from..to)` is ASCII. */
export function isAscii(bytes: Uint8Array, from: number, to: number): boolean {
  for (let i = from; i < to; i++) if ((bytes[i] as number) > 0x7f) return false;
  return true;
}

/** Whether `bytes[from..to)` equals `expected`. */
export function equalBytes(
  bytes: Uint8Array,
  from: number,
  to: number,
  expected: Uint8Array,
): boolean {
  if (to - from !== expected.length) return false;
  for (let i = 0; i < expected.length; i++) if (bytes[from + i] !== expected[i]) return false;
  return true;
}
