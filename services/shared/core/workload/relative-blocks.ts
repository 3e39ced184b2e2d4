/**
 * Block lists written relative to the previous request of the same session: `keep` leading blocks of
 * that request stay, then come the id ranges `runs` = [start, count, start, count, …]. A coding agent
 * sends its whole history again with every turn, so this is about a hundredth of the plain lists.
 * The agentic coding stream and our own workload files are written this way. A request without a
 * session has nothing before it: `keep` is 0.
 */
export interface RelativeBlocks {
  readonly keep: number;
  readonly runs: readonly number[];
}

/** Why a relative block list cannot be expanded. */
export interface RelativeBlocksProblem {
  readonly field: "keep" | "runs";
  readonly problem: string;
}

const idsMax = 0x1_0000_0000;

/** Expands relative block lists in file order. Holds the last list of every session. */
export class RelativeBlocksReader {
  readonly #previous = new Map<string, Uint32Array>();

  /** The whole list, or why there is none. `blocksMax` bounds its length. */
  expand(
    session: string | undefined,
    { keep, runs }: RelativeBlocks,
    blocksMax: number,
  ): Uint32Array | RelativeBlocksProblem {
    const previous = session === undefined ? undefined : this.#previous.get(session);
    const previousCount = previous?.length ?? 0;
    if (keep > previousCount) {
      return {
        field: "keep",
        problem: `is ${String(keep)}, but the session's previous request has ${String(previousCount)} blocks`,
      };
    }
    if (runs.length % 2 !== 0) {
      return { field: "runs", problem: "must hold pairs of start and count" };
    }
    let count = keep;
    for (let i = 0; i < runs.length; i += 2) {
      const start = runs[i] as number;
      const length = runs[i + 1] as number;
      if (length < 1 || start + length > idsMax) {
        return {
          field: "runs",
          problem: `has the range [${String(start)}, ${String(length)}]; ids are below 2^32 and counts at least 1`,
        };
      }
      count += length;
    }
    if (count > blocksMax) {
      return {
        field: "runs",
        problem: `gives ${String(count)} blocks, but the prompt holds at most ${String(blocksMax)}`,
      };
    }
    const blocks = new Uint32Array(count);
    if (previous !== undefined) blocks.set(previous.subarray(0, keep));
    let at = keep;
    for (let i = 0; i < runs.length; i += 2) {
      const start = runs[i] as number;
      const length = runs[i + 1] as number;
      for (let j = 0; j < length; j++) blocks[at++] = start + j;
    }
    if (session !== undefined) this.#previous.set(session, blocks);
    return blocks;
  }
}

/** Writes block lists relatively; what it writes, `RelativeBlocksReader` expands to the same lists. */
export class RelativeBlocksWriter {
  readonly #previous = new Map<string, Uint32Array | readonly number[]>();

  /** The shortest relative form of `blocks`, which must come in file order. */
  shorten(session: string | undefined, blocks: Uint32Array | readonly number[]): RelativeBlocks {
    const previous = session === undefined ? undefined : this.#previous.get(session);
    let keep = 0;
    if (previous !== undefined) {
      while (keep < blocks.length && keep < previous.length && blocks[keep] === previous[keep]) {
        keep++;
      }
    }
    const runs: number[] = [];
    for (let i = keep; i < blocks.length;) {
      const start = blocks[i] as number;
      let length = 1;
      while (i + length < blocks.length && blocks[i + length] === start + length) length++;
      runs.push(start, length);
      i += length;
    }
    if (session !== undefined) this.#previous.set(session, blocks);
    return { keep, runs };
  }
}
