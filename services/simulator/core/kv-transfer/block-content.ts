import { invariant } from "../../../shared/core/invariant.ts";

/** Words of 32 bits per independently seeded stretch of a block: 16 KiB, so that a piece can be made alone. */
const segmentWords = 4_096;

/** Pieces of a block begin at multiples of this many bytes. */
export const segmentBytes = segmentWords * 4;

/** Block sizes are multiples of this, bytes: four lanes of one word. */
export const contentUnitBytes = 16;

/**
 * Key of what a block that is not full holds: a function of the block before (zeros at the start of a
 * sequence), the tokens `[from, to)` and nothing else.
 */
export function partialBlockKey(
  parent: { readonly low: number; readonly high: number },
  tokens: Uint32Array,
  from: number,
  to: number,
): { low: number; high: number } {
  let low = mix(parent.low ^ 0x51ed270b);
  let high = mix(parent.high ^ (to - from));
  for (let i = from; i < to; i++) {
    low = mix(Math.imul(low ^ (tokens[i] as number), 0x9e3779b1) + high);
    high = mix(Math.imul(high + (tokens[i] as number), 0x85ebca77) ^ low);
  }
  return { low: low >>> 0, high: high >>> 0 };
}

/**
 * Writes the content of one piece of a KV block: bytes that depend on the block's key (the 64-bit chained hash of its
 * tokens) and their place alone. `firstWord` is a multiple of 4,096. Four xorshift32 lanes, seeded anew every
 * 16 KiB: about 0.5 ns a word, over 4 GB/s. Not random enough for anything but telling blocks apart.
 */
export function fillBlockContent(
  out: Uint32Array,
  key: { readonly low: number; readonly high: number },
  firstWord = 0,
): void {
  invariant(
    firstWord % segmentWords === 0 && out.length % 4 === 0,
    "pieces of a block begin at a segment and hold whole units",
  );
  for (let from = 0; from < out.length; from += segmentWords) {
    const segment = (firstWord + from) / segmentWords;
    const end = Math.min(out.length, from + segmentWords);
    let a = laneSeed(key, segment, 0);
    let b = laneSeed(key, segment, 1);
    let c = laneSeed(key, segment, 2);
    let d = laneSeed(key, segment, 3);
    for (let i = from; i < end; i += 4) {
      a ^= a << 13;
      b ^= b << 13;
      c ^= c << 13;
      d ^= d << 13;
      a ^= a >>> 17;
      b ^= b >>> 17;
      c ^= c >>> 17;
      d ^= d >>> 17;
      a ^= a << 5;
      b ^= b << 5;
      c ^= c << 5;
      d ^= d << 5;
      out[i] = a;
      out[i + 1] = b;
      out[i + 2] = c;
      out[i + 3] = d;
    }
  }
}

/**
 * Compares words that arrived with what a block of this key holds there: `fillBlockContent` that compares instead of
 * writing, without a second buffer. Does not stop early, since what differs is the exception.
 */
export function isBlockContent(
  words: Uint32Array,
  key: { readonly low: number; readonly high: number },
  firstWord: number,
): boolean {
  let wrong = 0;
  for (let from = 0; from < words.length; from += segmentWords) {
    const segment = (firstWord + from) / segmentWords;
    const end = Math.min(words.length, from + segmentWords);
    let a = laneSeed(key, segment, 0);
    let b = laneSeed(key, segment, 1);
    let c = laneSeed(key, segment, 2);
    let d = laneSeed(key, segment, 3);
    for (let i = from; i < end; i += 4) {
      a ^= a << 13;
      b ^= b << 13;
      c ^= c << 13;
      d ^= d << 13;
      a ^= a >>> 17;
      b ^= b >>> 17;
      c ^= c >>> 17;
      d ^= d >>> 17;
      a ^= a << 5;
      b ^= b << 5;
      c ^= c << 5;
      d ^= d << 5;
      wrong |= (words[i] as number) ^ a;
      wrong |= (words[i + 1] as number) ^ b;
      wrong |= (words[i + 2] as number) ^ c;
      wrong |= (words[i + 3] as number) ^ d;
    }
  }
  return wrong === 0;
}

function laneSeed(
  key: { readonly low: number; readonly high: number },
  segment: number,
  lane: number,
): number {
  const seed = mix(
    mix(key.low ^ Math.imul(segment, 0x27d4eb2f)) ^ key.high ^ Math.imul(lane + 1, 0x9e3779b1),
  );
  // Zero is the one state that xorshift never leaves.
  return seed === 0 ? lane + 1 : seed;
}

/** Final mix of murmur3. */
function mix(value: number): number {
  let x = value;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}
