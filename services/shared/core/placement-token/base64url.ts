const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/** Value of each character; 255 for those outside the alphabet. */
const values = new Uint8Array(256).fill(255);
const characters = new Uint8Array(64);
for (let i = 0; i < 64; i++) {
  values[alphabet.charCodeAt(i)] = i;
  characters[i] = alphabet.charCodeAt(i);
}

const decoder = new TextDecoder("latin1");

/** Base64 with the alphabet for URLs and no padding (RFC 4648 §5). */
export function toBase64url(bytes: Uint8Array): string {
  const out = new Uint8Array(Math.ceil((bytes.length * 4) / 3));
  let at = 0;
  for (let i = 0; i < bytes.length; i += 3) {
    const left = bytes.length - i;
    const group = ((bytes[i] as number) << 16) | ((bytes[i + 1] ?? 0) << 8) | (bytes[i + 2] ?? 0);
    out[at++] = characters[group >>> 18] as number;
    out[at++] = characters[(group >>> 12) & 63] as number;
    if (left > 1) out[at++] = characters[(group >>> 6) & 63] as number;
    if (left > 2) out[at++] = characters[group & 63] as number;
  }
  return decoder.decode(out);
}

/**
 * The bytes of such a text; `undefined` for anything that `toBase64url` does not write: other characters, padding, an
 * impossible length, bits set behind the last byte. So no two texts mean the same bytes.
 */
export function fromBase64url(text: string): Uint8Array | undefined {
  const tail = text.length % 4;
  if (tail === 1) return undefined;
  const bytes = new Uint8Array(Math.floor((text.length * 3) / 4));
  let at = 0;
  let bits = 0;
  let held = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    const value = code < 256 ? (values[code] as number) : 255;
    if (value === 255) return undefined;
    held = ((held << 6) | value) & 0xffff;
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = (held >>> bits) & 255;
  }
  if (bits > 0 && (held & ((1 << bits) - 1)) !== 0) return undefined;
  return bytes;
}
