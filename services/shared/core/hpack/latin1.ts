const char = String.fromCharCode;

/**
 * The octets in `b[start, end)` as a string of one character each. Sixteen at a time beat one at a time and, for the
 * lengths of header fields, also a view given to one call.
 */
export function latin1(b: Uint8Array, start: number, end: number): string {
  let text = "";
  let i = start;
  for (; i + 16 <= end; i += 16) {
    // prettier-ignore
    text += char(
      b[i] as number, b[i + 1] as number, b[i + 2] as number, b[i + 3] as number,
      b[i + 4] as number, b[i + 5] as number, b[i + 6] as number, b[i + 7] as number,
      b[i + 8] as number, b[i + 9] as number, b[i + 10] as number, b[i + 11] as number,
      b[i + 12] as number, b[i + 13] as number, b[i + 14] as number, b[i + 15] as number,
    );
  }
  for (; i + 4 <= end; i += 4) {
    text += char(b[i] as number, b[i + 1] as number, b[i + 2] as number, b[i + 3] as number);
  }
  for (; i < end; i++) text += char(b[i] as number);
  return text;
}
