/**
 * Bit lengths of the Huffman code of HPACK by symbol, octets 0 to 255 and then the end-of-string symbol
 * (RFC 7541 Appendix B). The code is canonical: sorted by length and symbol, each code is the one before it plus
 * one, widened. So the lengths are all there is to keep.
 */
// prettier-ignore
const codeBits: readonly number[] = [
  13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
  28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6,
  12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5,
  6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22,
  22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21,
  20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22,
  23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26,
  28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27,
  28, 27, 27, 27, 27, 27, 26, 30,
];

/** Number of the end-of-string symbol, which never occurs in a valid string. */
export const endOfString = 256;

/** Code and length of each symbol; the code's bits are the low `bits` ones. */
export const huffmanCodes: readonly { readonly code: number; readonly bits: number }[] = (() => {
  const codes = codeBits.map((bits) => ({ code: 0, bits }));
  const order = codes.map((_, symbol) => symbol);
  order.sort((a, b) => (codeBits[a] as number) - (codeBits[b] as number) || a - b);
  let next = 0;
  let width = 0;
  for (const symbol of order) {
    const entry = codes[symbol] as { code: number; bits: number };
    next *= 2 ** (entry.bits - width);
    width = entry.bits;
    entry.code = next;
    next++;
  }
  return codes;
})();
