import { hashBlocks, type HashRoot } from "../../../shared/core/block-hash.ts";

/** Block hashes of prompts that go on from one another: each beginning of the run is that of a prompt. */
interface Run {
  /** As (lo, hi) pairs. */
  hashes: Uint32Array;
  blocks: number;
}

/** The hashes of a prompt's first blocks. What has been handed out never changes. */
export interface HashedBlocks {
  readonly run: Run;
  readonly blocks: number;
}

/** None yet. */
export function noBlocks(): HashedBlocks {
  return { run: { hashes: new Uint32Array(0), blocks: 0 }, blocks: 0 };
}

/** The hashes as (lo, hi) pairs: a view of memory that others share, not to be written to. */
export function hashesOf({ run, blocks }: HashedBlocks): Uint32Array {
  return run.hashes.subarray(0, 2 * blocks);
}

/**
 * Goes on with the full blocks of `ids`, behind the prompt of `before`. The first prompt to go on from the end of a run
 * makes it longer, any other gets a copy of the beginning. `grown` is told of memory that is taken, bytes.
 */
export function withBlocks(
  before: HashedBlocks,
  root: HashRoot,
  ids: Uint32Array,
  options: { readonly blockSizeTokens: number; readonly grown: (bytes: number) => void },
): HashedBlocks {
  const { blockSizeTokens, grown } = options;
  const more = Math.floor(ids.length / blockSizeTokens);
  if (more === 0) return before;
  const blocks = before.blocks + more;
  let { run } = before;
  const isOurs = run.blocks === before.blocks;
  if (!isOurs || 2 * blocks > run.hashes.length) {
    const hashes = new Uint32Array(2 * blocks + Math.min(blocks, 512));
    hashes.set(run.hashes.subarray(0, 2 * before.blocks));
    grown(hashes.byteLength - (isOurs ? run.hashes.byteLength : 0));
    if (isOurs) run.hashes = hashes;
    else run = { hashes, blocks };
  }
  run.blocks = blocks;
  hashBlocks(last(before) ?? root, ids, blockSizeTokens, run.hashes.subarray(2 * before.blocks));
  return { run, blocks };
}

/** The hash of the last block. */
function last({ run, blocks }: HashedBlocks): HashRoot | undefined {
  if (blocks === 0) return undefined;
  return { lo: run.hashes[2 * blocks - 2] as number, hi: run.hashes[2 * blocks - 1] as number };
}
