/**
 * Hashes of words, keyed with four random 32-bit numbers, so that no text can be crafted whose words
 * meet in one slot.
 */

/** Hash of a word of up to 8 bytes, given as its bytes in two numbers, padded with zeros. */
export function hashShort(low: number, high: number, key: Int32Array): number {
  let a = Math.imul(low ^ (key[0] as number), (key[2] as number) | 1);
  const b = Math.imul(high ^ (key[1] as number), (key[3] as number) | 1);
  a ^= a >>> 15;
  a = Math.imul(a ^ b ^ (b >>> 13), 0x2c1b3c6d);
  return a ^ (a >>> 15);
}

/** Hash of a word of more than 8 bytes: four bytes a step, the last step ends at the word's end. */
export function hashLong(view: DataView, from: number, to: number, key: Int32Array): number {
  const first = (key[2] as number) | 1;
  const second = (key[3] as number) | 1;
  let a = key[0] as number;
  let b = (key[1] as number) ^ (to - from);
  for (let at = from; at < to - 4; at += 4) {
    a = Math.imul(a ^ view.getInt32(at, true), first);
    a ^= a >>> 15;
    b = Math.imul(b ^ a, second);
  }
  a = Math.imul(a ^ view.getInt32(to - 4, true), first);
  a ^= (a >>> 15) ^ b;
  a = Math.imul(a, 0x2c1b3c6d);
  return a ^ (a >>> 15);
}

/** The bytes that count in a word's number of four bytes, by how many of them belong to the word. */
export const byteMasks = Int32Array.of(0, 0xff, 0xffff, 0xff_ffff, -1, -1, -1, -1, -1);
/** As `byteMasks` for the second four bytes of a word of up to eight. */
export const highByteMasks = Int32Array.of(0, 0, 0, 0, 0, 0xff, 0xffff, 0xff_ffff, -1);
