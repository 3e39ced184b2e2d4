import { invariant } from "./invariant.ts";
import { sha256 } from "./sha256.ts";

/**
 * Sequence hashes: 64 bits per full block of tokens, chained from the block before, so that one hash
 * names a whole prefix. Held as two unsigned 32-bit halves because BigInt arithmetic costs about
 * thirty times as much.
 *
 * A hash is a routing hint. A collision costs a wrong guess about what a worker has cached, never
 * wrong data; what names data uses a cryptographic hash.
 *
 * How it works, and why it resists crafted prompts. The chain starts at a root that only holders of
 * the deployment's secret seed can compute. From the parent hash each block draws four starting
 * lanes and four odd multipliers, so someone who does not know the chain knows neither. Even tokens
 * go into lane a, odd ones into lane c (two independent chains keep the multiplier busy); b and d
 * absorb the whole history of a and c. A difference that cancels in a therefore stays in b unless more
 * secret products cancel as well. Every step is a bijection of the lane for a given token and of the
 * token for a given lane. The 128 bits are folded into 64 and run through a bijective finaliser, so
 * unrelated prompts collide about once in 2⁶⁴ pairs. Against crafted differences the argument needs
 * ids below 2²⁴, which every vocabulary keeps: a flip of bit 31 alone passes a product unchanged.
 * It is a fast keyed hash, not a cryptographic one: hashes are not shown to clients.
 *
 * On the wire a hash is 8 bytes little-endian: lo, then hi.
 */
export type HashRoot = {
  /** Low half, 0 … 2³² − 1. */
  readonly lo: number;
  /** High half, 0 … 2³² − 1. */
  readonly hi: number;
};

/** What a chain of hashes is about. Caches are shared exactly when all three are equal. */
export type HashRootScope = {
  /** Model name as workers announce it. */
  readonly model: string;
  /** LoRA adapter name; absent means the base model, which differs from an empty name. */
  readonly lora?: string;
  /** Tenant or media salt; absent differs from empty. */
  readonly salt?: string | Uint8Array;
};

/** Least size of the deployment's secret seed, in bytes. */
export const hashSeedSizeMin = 32;

/**
 * The start of the chain for one (model, LoRA, salt) under one deployment's secret seed: the first
 * 64 bits of SHA-256 over the length-prefixed parts. A few µs; compute it once per scope.
 */
export function hashRoot(seed: Uint8Array, scope: HashRootScope): HashRoot {
  invariant(
    seed.length >= hashSeedSizeMin,
    `hash seed has ${String(seed.length)} bytes; at least ${String(hashSeedSizeMin)} are needed`,
  );
  const encoder = new TextEncoder();
  const salt = typeof scope.salt === "string" ? encoder.encode(scope.salt) : scope.salt;
  const lora = scope.lora === undefined ? undefined : encoder.encode(scope.lora);
  const parts = [
    encoder.encode("kvmesh block hash 1"),
    seed,
    encoder.encode(scope.model),
    lora,
    salt,
  ];
  const sizes = parts.map((part) => part?.length ?? 0);
  const message = new Uint8Array(sizes.reduce((sum, size) => sum + 5 + size, 0));
  const view = new DataView(message.buffer);
  let at = 0;
  for (const part of parts) {
    view.setUint8(at, part === undefined ? 0 : 1);
    view.setUint32(at + 1, part?.length ?? 0);
    if (part !== undefined) message.set(part, at + 5);
    at += 5 + (part?.length ?? 0);
  }
  const digest = new DataView(sha256(message).buffer);
  return { lo: digest.getUint32(0, true), hi: digest.getUint32(4, true) };
}

/**
 * Hashes of every full block of `tokens`, as `[lo0, hi0, lo1, hi1, …]`; a trailing partial block has
 * none. Writes into `out` when it is given (at least two entries per block) and returns the filled
 * part as a view of it, otherwise allocates.
 *
 * About 2 ns per token for a `Uint32Array`; a plain array is copied into one first. Token ids are
 * taken modulo 2³².
 */
export function hashBlocks(
  root: HashRoot,
  tokens: Uint32Array | readonly number[],
  blockSizeTokens: number,
  out?: Uint32Array,
): Uint32Array {
  checkBlockSize(blockSizeTokens);
  const blockCount = Math.floor(tokens.length / blockSizeTokens);
  const target = out ?? new Uint32Array(2 * blockCount);
  invariant(target.length >= 2 * blockCount, "out holds fewer than two entries per full block");
  const ids = tokens instanceof Uint32Array ? tokens : Uint32Array.from(tokens);
  chain(root.lo, root.hi, ids, 0, blockSizeTokens, blockCount, target);
  return target.length === 2 * blockCount ? target : target.subarray(0, 2 * blockCount);
}

/**
 * The hash of one block that follows the prefix named by (`parentLo`, `parentHi`), written to `out`
 * as `[lo, hi]`. Equal to what `hashBlocks` gives at that position; the parent of the first block is
 * the root. The block is `tokens[offset … offset + blockSizeTokens)` and must lie inside `tokens`.
 */
export function hashNextBlock(
  parentLo: number,
  parentHi: number,
  tokens: Uint32Array | readonly number[],
  offset: number,
  blockSizeTokens: number,
  out: Uint32Array,
): void {
  checkBlockSize(blockSizeTokens);
  invariant(
    Number.isInteger(offset) && offset >= 0 && offset + blockSizeTokens <= tokens.length,
    "the block reaches outside the tokens",
  );
  invariant(out.length >= 2, "out holds fewer than two entries");
  if (tokens instanceof Uint32Array) {
    chain(parentLo, parentHi, tokens, offset, blockSizeTokens, 1, out);
  } else {
    const ids = Uint32Array.from(tokens.slice(offset, offset + blockSizeTokens));
    chain(parentLo, parentHi, ids, 0, blockSizeTokens, 1, out);
  }
}

function checkBlockSize(blockSizeTokens: number): void {
  invariant(
    Number.isInteger(blockSizeTokens) && blockSizeTokens >= 1,
    `block size ${String(blockSizeTokens)} is not a positive whole number of tokens`,
  );
}

/**
 * The kernel. Constants are odd 32-bit values from published mixers (MurmurHash3, xxHash32 and the
 * "lowbias32" search); none of the security rests on them, since the lane multipliers are secret.
 */
function chain(
  parentLo: number,
  parentHi: number,
  tokens: Uint32Array,
  start: number,
  blockSizeTokens: number,
  blockCount: number,
  out: Uint32Array,
): void {
  let lo = parentLo | 0;
  let hi = parentHi | 0;
  let at = start;
  const pairsSize = blockSizeTokens & ~1;
  for (let block = 0; block < blockCount; block++) {
    let a = lo ^ blockSizeTokens;
    let b = hi ^ 0x165667b1;
    let c = Math.imul(lo ^ 0x9e3779b9 ^ (hi >>> 15), 0x85ebca77);
    let d = Math.imul(hi ^ 0x7f4a7c15 ^ (lo >>> 13), 0xc2b2ae3d);
    const ka = (c ^ (c >>> 16)) | 1;
    const kb = (d ^ (d >>> 16)) | 1;
    c = Math.imul(c + hi, 0x27d4eb2f);
    d = Math.imul(d + lo, 0x9e3779b1);
    const kc = (c ^ (d >>> 15)) | 1;
    const kd = (d ^ (c >>> 15)) | 1;
    const pairsEnd = at + pairsSize;
    for (; at < pairsEnd; at += 2) {
      const even = tokens[at] as number;
      const odd = tokens[at + 1] as number;
      a = Math.imul(a ^ even, ka);
      c = Math.imul(c ^ odd, kc);
      a ^= a >>> 15;
      c ^= c >>> 15;
      b = Math.imul(b ^ a, kb);
      d = Math.imul(d ^ c, kd);
    }
    if (pairsSize !== blockSizeTokens) {
      a = Math.imul(a ^ (tokens[at++] as number), ka);
      a ^= a >>> 15;
      b = Math.imul(b ^ a, kb);
    }
    // 128 bits to 64, then a bijection of (a, b) in which every input bit reaches every output bit.
    a = (a + Math.imul(c, 0xcc9e2d51)) | 0;
    b = (b + Math.imul(d, 0x1b873593)) | 0;
    a ^= (b << 16) | (b >>> 16);
    a = Math.imul(a ^ (a >>> 16), 0x7feb352d);
    b = Math.imul(b ^ a ^ (a >>> 15), 0x846ca68b);
    b ^= b >>> 15;
    a = Math.imul((a + b) ^ (b >>> 16), 0x85ebca6b);
    a ^= a >>> 13;
    b = Math.imul(b + a, 0xc2b2ae35);
    b ^= b >>> 16;
    a = (a + b) | 0;
    lo = a;
    hi = b;
    out[2 * block] = a;
    out[2 * block + 1] = b;
  }
}
