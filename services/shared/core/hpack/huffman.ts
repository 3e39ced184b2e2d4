import { endOfString, huffmanCodes } from "./huffman-code.ts";

/*
 * The decoder walks the code tree four bits at a time. The shortest code has five bits, so a step yields at most one
 * symbol. A cell is `next state | symbol << 8 | emits << 16 | fails << 17`; the 256 states are the tree's inner
 * nodes, so all steps fit 16 KiB.
 */
const emits = 1 << 16;
const fails = 1 << 17;
const steps = new Uint32Array(256 * 16);
/** 1 where a string may end: the bits since the last symbol are at most seven and all ones. */
const mayEnd = new Uint8Array(256);

function buildSteps(): void {
  const zero = new Int32Array(256).fill(-1);
  const one = new Int32Array(256).fill(-1);
  // Leaves are stored as -2 - symbol.
  let nodes = 1;
  for (let symbol = 0; symbol <= endOfString; symbol++) {
    const { code, bits } = huffmanCodes[symbol] as { code: number; bits: number };
    let node = 0;
    for (let bit = bits - 1; bit > 0; bit--) {
      const side = (code >>> bit) & 1 ? one : zero;
      if (side[node] === -1) side[node] = nodes++;
      node = side[node] as number;
    }
    (code & 1 ? one : zero)[node] = -2 - symbol;
  }
  for (let state = 0; state < nodes; state++) {
    for (let nibble = 0; nibble < 16; nibble++) {
      let node = state;
      let cell = 0;
      for (let bit = 3; bit >= 0 && (cell & fails) === 0; bit--) {
        const child = ((nibble >>> bit) & 1 ? one : zero)[node] as number;
        if (child >= 0) node = child;
        else if (child === -2 - endOfString) cell |= fails;
        else {
          cell |= emits | ((-2 - child) << 8);
          node = 0;
        }
      }
      steps[state * 16 + nibble] = cell | node;
    }
  }
  let node = 0;
  for (let ones = 0; ones <= 7; ones++) {
    mayEnd[node] = 1;
    node = one[node] as number;
  }
}
buildSteps();

/**
 * Decodes the Huffman string in `input[start, end)` into `output` and returns its length, or -1 when it is not valid:
 * it has the end-of-string symbol, or ends in padding that is longer than seven bits or not all ones (RFC 7541
 * §5.2). `output` must hold 8/5 of the input, the most that one can grow.
 */
export function decodeHuffman(
  input: Uint8Array,
  start: number,
  end: number,
  output: Uint8Array,
): number {
  let state = 0;
  let length = 0;
  for (let at = start; at < end; at++) {
    const octet = input[at] as number;
    const high = steps[state * 16 + (octet >>> 4)] as number;
    if ((high & emits) !== 0) output[length++] = high >>> 8;
    const low = steps[(high & 255) * 16 + (octet & 15)] as number;
    if ((low & emits) !== 0) output[length++] = low >>> 8;
    if (((high | low) & fails) !== 0) return -1;
    state = low & 255;
  }
  return mayEnd[state] === 1 ? length : -1;
}

/** Bytes of `text` (one octet per character) when Huffman-coded. */
export function huffmanBytes(text: string): number {
  let bits = 0;
  for (let i = 0; i < text.length; i++) {
    bits += (huffmanCodes[text.charCodeAt(i) & 255] as { bits: number }).bits;
  }
  return (bits + 7) >>> 3;
}

/** Appends the Huffman form of `text` (one octet per character) to `output` at `at`; returns the position after it. */
export function encodeHuffman(text: string, output: Uint8Array, at: number): number {
  let held = 0;
  let heldBits = 0;
  for (let i = 0; i < text.length; i++) {
    const { code, bits } = huffmanCodes[text.charCodeAt(i) & 255] as { code: number; bits: number };
    // Multiplication instead of a shift: up to 7 held bits and a code of 30 do not fit 32.
    held = held * 2 ** bits + code;
    heldBits += bits;
    while (heldBits >= 8) {
      heldBits -= 8;
      const octet = Math.floor(held / 2 ** heldBits);
      output[at++] = octet;
      held -= octet * 2 ** heldBits;
    }
  }
  if (heldBits > 0) {
    const pad = 8 - heldBits;
    output[at++] = held * 2 ** pad + (2 ** pad - 1);
  }
  return at;
}
