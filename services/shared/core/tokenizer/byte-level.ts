/**
 * The byte-level alphabet of GPT-2: each byte is written as one visible character, so that a vocabulary
 * of byte strings fits in JSON. Printable Latin-1 stands for itself; the other 68 bytes become
 * U+0100 … U+0143 in order.
 */

function printsItself(byte: number): boolean {
  return (
    (byte >= 0x21 && byte <= 0x7e) ||
    (byte >= 0xa1 && byte <= 0xac) ||
    (byte >= 0xae && byte <= 0xff)
  );
}

/** For each character code below 0x144 the byte it stands for, or -1. */
export function bytesByCharCode(): Int16Array {
  const table = new Int16Array(0x144).fill(-1);
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    table[printsItself(byte) ? byte : next++] = byte;
  }
  return table;
}

/** The character that stands for each byte. */
export function charsByByte(): string[] {
  const chars = new Array<string>(256);
  bytesByCharCode().forEach((byte, code) => {
    if (byte >= 0) chars[byte] = String.fromCharCode(code);
  });
  return chars;
}
