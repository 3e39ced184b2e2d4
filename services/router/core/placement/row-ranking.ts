import type { MonoMs } from "../../../shared/core/ids.ts";
import { invariant } from "../../../shared/core/invariant.ts";
import { wholeTokens } from "../load/worker-book.ts";
import { column, rowLength } from "../load/worker-columns.ts";
import type { CandidateInput, PlacementRequest, ScoredCandidate } from "./candidate.ts";
import { costRows, estimated, estimatedCount, termsInto, type CostWeights } from "./estimate.ts";
import { costRank, margin, type Ranking } from "./place.ts";
import {
  listedOf,
  type Eligible,
  type PlacementTable,
  type TableWorker,
} from "./placement-table.ts";
import { blankNumbers, candidateNumber, plainInput, RowCandidate } from "./row-candidate.ts";

/** What a ranking is made of. */
export interface RankQuestion {
  readonly eligible: Eligible;
  readonly request: PlacementRequest;
  /** Leading blocks of the prompt that each slot of the KV index holds; `undefined` when there are none to look for. */
  readonly depths: Uint32Array | undefined;
  /** Rank as if nothing were cached anywhere. */
  readonly isBlind: boolean;
  /** Candidates wanted at least, as far as there are some. */
  readonly least: number;
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

/** For questions about rows of the asker's own. */
const noneEligible: Eligible = {
  rows: new Int32Array(0),
  count: 0,
  outputTokensMean: Number.NaN,
  filtered: [],
  filteredCounts: new Map(),
  filteredLeftOut: 0,
};

/** Costs that differ by so much are no tie, ms. */
const certainMs = 1e-5;

/**
 * Our own cost over the rows of a `PlacementTable`: one pass of plain arithmetic, then objects for the best of them.
 * The same as `rank` over candidates made from objects, which is what its tests compare it with.
 */
export class RowRanker {
  readonly #table: PlacementTable;
  readonly #held: HeldBlocks;
  readonly #blockTokens: number;
  readonly #weights: CostWeights;
  #question: RankQuestion | undefined;
  #values: Float64Array;
  #request: PlacementRequest = { promptTokens: 0, expectedOutputTokens: 0 };
  #depths: Uint32Array | undefined;
  #reusableTokens = 0;
  #now = 0;
  /** Row of the worker that served the conversation last; −1 for none. */
  #homeRow = -1;
  #affinityMs = 0;
  /** Estimate for the row whose cost was worked out last. */
  readonly #times = new Float64Array(estimatedCount);
  /** By place in `Eligible.rows`, ms. */
  #costs = new Float64Array(64);
  readonly #oneRow = new Int32Array(1);
  readonly #oneCost = new Float64Array(1);
  /** Places of the best, best first. */
  #best = new Int32Array(64);

  constructor(options: {
    readonly table: PlacementTable;
    readonly index: HeldBlocks;
    readonly blockSizeTokens: number;
    readonly weights: CostWeights;
  }) {
    this.#weights = options.weights;
    this.#table = options.table;
    this.#held = options.index;
    this.#blockTokens = options.blockSizeTokens;
    this.#values = options.table.columns.values;
  }

  /** Ranks the eligible workers. */
  rank(question: RankQuestion): ShortRanking {
    this.#ask(question);
    const { eligible, isBlind, least } = question;
    const { rows, count } = eligible;
    const keep = listedOf(count, least);
    this.#reserve(count);
    this.#fill(rows, count, isBlind);
    this.#costRows(rows, count, this.#costs);
    const kept = this.#select(count, keep);
    const candidates: RowCandidate[] = [];
    for (let i = 0; i < kept; i++) {
      candidates.push(this.#candidate(rows[this.#best[i] as number] as number));
    }
    return {
      candidates,
      ...margin(candidates),
      leftOut: count - kept,
      all: () => (kept === count ? candidates : this.#all(question)),
    };
  }

  /** All eligible workers as policies look at them, in the order of their ids. */
  inputs(question: RankQuestion): CandidateInput[] {
    this.#ask(question);
    const { rows, count } = question.eligible;
    const inputs: CandidateInput[] = [];
    for (let i = 0; i < count; i++) inputs.push(plainInput(this.#candidate(rows[i] as number)));
    return inputs;
  }

  /**
   * Fills in what holds of some rows now and for a request, for whoever works out costs of his own; returns the columns. A
   * ranking made before tells only of what it kept from then on.
   */
  prepare(
    of: { readonly rows: Int32Array; readonly count: number },
    question: Pick<RankQuestion, "request" | "depths" | "isBlind" | "now">,
  ): Float64Array {
    this.#ask({ ...question, eligible: noneEligible, least: 0 });
    this.#fill(of.rows, of.count, question.isBlind);
    return this.#values;
  }

  /** One worker of the table as a candidate for a request, as `rank` would show it. */
  candidate(
    row: number,
    question: Pick<RankQuestion, "request" | "depths" | "isBlind" | "now">,
  ): ScoredCandidate {
    this.#ask({ ...question, eligible: noneEligible, least: 0 });
    return this.#candidate(row);
  }

  #ask(question: RankQuestion): void {
    const { request, depths, now } = question;
    this.#question = question;
    this.#values = this.#table.columns.values;
    this.#request = request;
    this.#depths = depths;
    this.#reusableTokens = reusableTokens(request.promptTokens, this.#blockTokens);
    this.#now = now;
    const { home, affinityMs = 0 } = request;
    this.#homeRow = home === undefined ? -1 : this.#table.rowOf(home);
    // Once that worker has left, any other is as good as the next.
    this.#affinityMs = home === undefined ? 0 : affinityMs;
  }

  #all(question: RankQuestion): RowCandidate[] {
    invariant(this.#question === question, "another ranking has been made since");
    const { rows, count } = question.eligible;
    const places = Array.from({ length: count }, (_, i) => i);
    places.sort((a, b) => (this.#isBefore(a, b) ? -1 : 1));
    return places.map((place) => this.#candidate(rows[place] as number));
  }

  /** Puts the places of the best `keep` in order; returns how many there are. */
  #select(count: number, keep: number): number {
    const best = this.#best;
    const costs = this.#costs;
    let kept = 0;
    let worstMs = Infinity;
    for (let place = 0; place < count; place++) {
      // Surely no tie either; most of a large pool ends here.
      if ((costs[place] as number) > worstMs) continue;
      if (kept === keep && !this.#isBefore(place, best[kept - 1] as number)) continue;
      let at = kept < keep ? kept++ : kept - 1;
      while (at > 0 && this.#isBefore(place, best[at - 1] as number)) {
        best[at] = best[at - 1] as number;
        at--;
      }
      best[at] = place;
      if (kept === keep) worstMs = (costs[best[kept - 1] as number] as number) + certainMs;
    }
    return kept;
  }

  /** Cheaper; of equal ones the one with fewer open requests, then the lower id, which is the lower place. */
  #isBefore(a: number, b: number): boolean {
    const costA = this.#costs[a] as number;
    const costB = this.#costs[b] as number;
    if (costA !== costB) {
      const rankA = costRank(costA);
      const rankB = costRank(costB);
      if (rankA !== rankB) return rankA < rankB;
    }
    const open = this.#open(a) - this.#open(b);
    return open !== 0 ? open < 0 : a < b;
  }

  #open(place: number): number {
    const row = this.#question?.eligible.rows[place] as number;
    return this.#values[row * rowLength + column.openRequests] as number;
  }

  #matchedBlocks(slot: number): number {
    return slot < 0 || this.#depths === undefined ? 0 : (this.#depths[slot] as number);
  }

  #costRows(rows: Int32Array, count: number, costs: Float64Array): void {
    const { promptTokens, expectedOutputTokens } = this.#request;
    const values = this.#values;
    const times = this.#times;
    const homeRow = this.#homeRow;
    const affinityMs = this.#affinityMs;
    const request = { promptTokens, expectedOutputTokens, homeRow, affinityMs };
    costRows({ ...request, weights: this.#weights, values, rows, count, costs, times });
  }

  /** Cost of the request on one worker; leaves its estimate in `#times`. */
  #costMs(row: number, isBlind: boolean): number {
    this.#oneRow[0] = row;
    this.#fill(this.#oneRow, 1, isBlind);
    this.#costRows(this.#oneRow, 1, this.#oneCost);
    return this.#oneCost[0] as number;
  }

  /** Fills in what holds of rows now and for this request. */
  #fill(rows: Int32Array, count: number, isBlind: boolean): void {
    const values = this.#values;
    const now = this.#now;
    const depths = isBlind ? undefined : this.#depths;
    const reusable = this.#reusableTokens;
    const blockTokens = this.#blockTokens;
    const { blockCounts } = this.#held;
    for (let i = 0; i < count; i++) {
      const row = rows[i] as number;
      const at = row * rowLength;
      let elapsedMs = now - (values[at + column.linesFrom] as number);
      if (now >= (values[at + column.linesUntil] as number) || elapsedMs < 0) {
        this.#table.worker(row).book.renew(now as MonoMs);
        elapsedMs = now - (values[at + column.linesFrom] as number);
      }
      const grown = (values[at + column.answerRate] as number) * elapsedMs;
      const contextBase = values[at + column.contextBase] as number;
      const leftBase = values[at + column.tokensLeftBase] as number;
      const queuedBase = values[at + column.queuedBase] as number;
      const queuedGrown = (values[at + column.queuedRate] as number) * elapsedMs;
      const backlogMs = (values[at + column.prefillFreeAt] as number) - now;
      values[at + column.contextTokens] = wholeTokens(contextBase + grown);
      values[at + column.tokensLeft] = wholeTokens(leftBase - grown);
      values[at + column.queuedTokens] = wholeTokens(queuedBase + queuedGrown);
      values[at + column.backlogMs] = backlogMs > 0 ? backlogMs : 0;
      const slot = values[at + column.slot] as number;
      let heldTokens = 0;
      let matchedTokens = 0;
      if (slot >= 0) {
        heldTokens = (blockCounts[slot] as number) * blockTokens;
        if (depths !== undefined) {
          matchedTokens = Math.min((depths[slot] as number) * blockTokens, reusable);
        }
      }
      values[at + column.heldTokens] = heldTokens;
      values[at + column.matchedTokens] = matchedTokens;
    }
  }

  #candidate(row: number): RowCandidate {
    const isBlind = this.#question?.isBlind === true;
    const n = blankNumbers();
    n[candidateNumber.costMs] = this.#costMs(row, isBlind);
    const affinityMs = row === this.#homeRow ? 0 : this.#affinityMs;
    termsInto(this.#times, this.#weights, affinityMs, n, candidateNumber.terms);
    // What it costs may be blind, what it is expected to take is not.
    if (isBlind) this.#costMs(row, false);
    const times = this.#times;
    const prefillMs = times[estimated.prefillMs] as number;
    n[candidateNumber.predictedTtftMs] =
      (times[estimated.queueMs] as number) + (times[estimated.stallMs] as number) + prefillMs;
    n[candidateNumber.prefillMs] = prefillMs;
    n[candidateNumber.decodeMs] = times[estimated.decodeMs] as number;
    return new RowCandidate(this.#readInto(n, row).named, n);
  }

  /** Copies what is known of a row whose cost has just been worked out. */
  #readInto(n: number[], row: number): TableWorker {
    const worker = this.#table.worker(row);
    const { report } = worker.book;
    const values = this.#values;
    const at = row * rowLength;
    const slot = values[at + column.slot] as number;
    n[candidateNumber.matchedBlocks] = this.#matchedBlocks(slot);
    n[candidateNumber.matchedTokens] = values[at + column.matchedTokens] as number;
    n[candidateNumber.openRequests] = values[at + column.openRequests] as number;
    n[candidateNumber.prefillBacklogMs] = values[at + column.backlogMs] as number;
    n[candidateNumber.queuedPrefillTokens] = values[at + column.queuedTokens] as number;
    n[candidateNumber.decoding] = values[at + column.decoding] as number;
    n[candidateNumber.decodingContextTokens] = values[at + column.contextTokens] as number;
    n[candidateNumber.decodingTokensLeft] = values[at + column.tokensLeft] as number;
    n[candidateNumber.overdueMs] = values[at + column.overdueMs] as number;
    n[candidateNumber.foreignRequests] = values[at + column.foreignRequests] as number;
    n[candidateNumber.heldTokens] = values[at + column.heldTokens] as number;
    n[candidateNumber.capacityTokens] = values[at + column.capacityTokens] as number;
    n[candidateNumber.stepTokensMax] = values[at + column.stepTokensMax] as number;
    n[candidateNumber.reportedRunning] = report?.running ?? 0;
    n[candidateNumber.reportedWaiting] = report?.waiting ?? 0;
    n[candidateNumber.reportedKvUsageRatio] = report?.kvUsageRatio ?? 0;
    n[candidateNumber.suspect] = worker.suspect ? 1 : 0;
    n[candidateNumber.reportedAgeMs] = report === undefined ? -1 : this.#now - report.at;
    return worker;
  }

  #reserve(count: number): void {
    if (count > this.#costs.length) this.#costs = new Float64Array(2 * count);
    if (count > this.#best.length) this.#best = new Int32Array(2 * count);
  }
}

/** Tokens of a prompt that can come from a cache: whole blocks, and never the last token. */
export function reusableTokens(promptTokens: number, blockSizeTokens: number): number {
  return Math.floor(Math.max(0, promptTokens - 1) / blockSizeTokens) * blockSizeTokens;
}
