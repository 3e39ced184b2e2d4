import { segmentBytes } from "./block-content.ts";
import { chunkBlocksMax, chunkBytesMax } from "./frames.ts";

/** One chunk of a pull: whole blocks, or a piece of one. */
export interface ChunkPlan {
  /** Place of the first block in the order of the pull. */
  readonly firstBlock: number;
  readonly blockCount: number;
  readonly offsetBytes: number;
  readonly contentBytes: number;
}

/** Longest time that one chunk takes on a link, s, as far as its size may be chosen. */
const chunkSecondsMax = 0.01;

/** Content bytes of a chunk on a link of this speed (0: unlimited): small on slow ones, so that pulls take turns. */
export function chunkBytesFor(bytesPerS: number): number {
  if (bytesPerS <= 0) return chunkBytesMax;
  return Math.max(segmentBytes, Math.min(chunkBytesMax, Math.floor(bytesPerS * chunkSecondsMax)));
}

/**
 * Cuts a pull of `blockCount` blocks into chunks of at most `bytesMax` (16 to 256 KiB): several whole blocks, or pieces of
 * one at multiples of 16 KiB. In order, each byte once.
 */
export function* planChunks(
  blockCount: number,
  bytesPerBlock: number,
  bytesMax = chunkBytesMax,
): Generator<ChunkPlan> {
  if (bytesPerBlock <= bytesMax) {
    const perChunk = Math.min(chunkBlocksMax, Math.floor(bytesMax / bytesPerBlock));
    for (let firstBlock = 0; firstBlock < blockCount; firstBlock += perChunk) {
      const count = Math.min(perChunk, blockCount - firstBlock);
      yield {
        firstBlock,
        blockCount: count,
        offsetBytes: 0,
        contentBytes: count * bytesPerBlock,
      };
    }
    return;
  }
  const pieceBytes = Math.floor(bytesMax / segmentBytes) * segmentBytes;
  for (let firstBlock = 0; firstBlock < blockCount; firstBlock++) {
    for (let offsetBytes = 0; offsetBytes < bytesPerBlock; offsetBytes += pieceBytes) {
      const contentBytes = Math.min(pieceBytes, bytesPerBlock - offsetBytes);
      yield { firstBlock, blockCount: 1, offsetBytes, contentBytes };
    }
  }
}
