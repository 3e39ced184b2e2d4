/** Octets turned into characters at once; more arguments would strain the call stack. */
const pieceOctets = 2_048;

/** The octets in `bytes[start, end)` as a string of one character each. */
export function latin1(bytes: Uint8Array, start: number, end: number): string {
  if (end - start <= 24) {
    let text = "";
    for (let i = start; i < end; i++) text += String.fromCharCode(bytes[i] as number);
    return text;
  }
  let text = "";
  for (let at = start; at < end; at += pieceOctets) {
    const piece = bytes.subarray(at, Math.min(end, at + pieceOctets));
    text += String.fromCharCode.apply(null, piece as unknown as number[]);
  }
  return text;
}
