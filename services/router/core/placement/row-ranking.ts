import type { MonoMs } from "../../../shared/core/ids.ts";
import { column, rowLength } from "../load/worker-columns.ts";
import type { CandidateInput, PlacementRequest, ScoredCandidate } from "./candidate.ts";
import type { Ranking } from "./place.ts";
import { listedOf, type Eligible, type PlacementTable } from "./placement-table.ts";

/** What a ranking is made of. */
export interface RankQuestion {
  readonly eligible: Eligible;
  readonly request: PlacementRequest;
  /** Leading blocks of the prompt that each slot of the KV index holds; `undefined` when there are none to look for. */
  readonly depths: Uint32Array | undefined;
  readonly now: MonoMs;
}

/** A ranking of which the first are told. */
export interface ShortRanking extends Ranking {
  /** Eligible workers that `candidates` does not hold. */
  readonly leftOut: number;
  /** All of them, cheapest first. Only until the next ranking and while nothing has changed. O(n log n). */
  all(): readonly ScoredCandidate[];
}

/** Blocks held by slot. */
export interface HeldBlocks {
  readonly blockCounts: Uint32Array;
}

/** Keeps of a ranking what a decision lists, at least `least` candidates. */
export function shortRanking(ranking: Ranking, least: number): ShortRanking {
  const { candidates } = ranking;
  const kept = listedOf(candidates.length, least);
  return {
    ...ranking,
    candidates: candidates.slice(0, kept),
    leftOut: candidates.length - kept,
    all: () => candidates,
  };
}

/** Looks at the rows of a `PlacementTable` as policies do. */
export class RowRanker {
  readonly #table: PlacementTable;
  readonly #held: HeldBlocks;
  readonly #blockTokens: number;

  constructor(options: {
    readonly table: PlacementTable;
    readonly index: HeldBlocks;
    readonly blockSizeTokens: number;
  }) {
    this.#table = options.table;
    this.#held = options.index;
    this.#blockTokens = options.blockSizeTokens;
  }

  /** All eligible workers as policies look at them, in the order of their ids. */
  inputs(question: RankQuestion): CandidateInput[] {
    const { rows, count } = question.eligible;
    const inputs: CandidateInput[] = [];
    for (let i = 0; i < count; i++) inputs.push(this.#input(rows[i] as number, question));
    return inputs;
  }

  #input(row: number, { request, depths, now }: RankQuestion): CandidateInput {
    const { workerId, endpoint, suspect, steps, book } = this.#table.worker(row);
    const { values } = this.#table.columns;
    const at = row * rowLength;
    const slot = values[at + column.slot] as number;
    const isIndexed = slot >= 0;
    const matchedBlocks = isIndexed && depths !== undefined ? (depths[slot] as number) : 0;
    const heldBlocks = isIndexed ? (this.#held.blockCounts[slot] as number) : 0;
    const reusable = reusableTokens(request.promptTokens, this.#blockTokens);
    const { report } = book;
    return {
      workerId,
      endpoint,
      matchedBlocks,
      matchedTokens: Math.min(matchedBlocks * this.#blockTokens, reusable),
      load: book.load(now),
      foreignRequests: book.foreignRequests,
      steps,
      heldTokens: heldBlocks * this.#blockTokens,
      capacityTokens: values[at + column.capacityTokens] as number,
      stepTokensMax: values[at + column.stepTokensMax] as number,
      suspect,
      reportedRunning: report?.running ?? 0,
      reportedWaiting: report?.waiting ?? 0,
      reportedKvUsageRatio: report?.kvUsageRatio ?? 0,
      reportedAgeMs: report === undefined ? -1 : now - report.at,
    };
  }
}

/** Tokens of a prompt that can come from a cache: whole blocks, and never the last token. */
export function reusableTokens(promptTokens: number, blockSizeTokens: number): number {
  return Math.floor(Math.max(0, promptTokens - 1) / blockSizeTokens) * blockSizeTokens;
}
