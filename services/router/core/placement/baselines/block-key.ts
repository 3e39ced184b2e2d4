/** 53 bits of the sequence hash of block `index`: a number that a `Map` takes, and enough that a false match never matters. */
export function blockKey(hashes: Uint32Array, index: number): number {
  const at = 2 * index;
  return (hashes[at] as number) + ((hashes[at + 1] as number) & 0x1f_ffff) * 0x1_0000_0000;
}
