import type { MonoMs } from "../../../shared/core/ids.ts";
import { invariant } from "../../../shared/core/invariant.ts";
import { tokensOnLine } from "../load/worker-book.ts";
import { column, rowLength } from "../load/worker-columns.ts";
import type { CandidateInput, PlacementRequest, ScoredCandidate } from "./candidate.ts";
import { costOf, estimated, estimatedCount, estimateRow, ownTerms } from "./estimate.ts";
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

/**
 * Our own cost over the rows of a `PlacementTable`: one pass of plain arithmetic, then objects for the best of them.
 * The same as `rank` over candidates made from objects, which is what its tests compare it with.
 */
export class RowRanker {
  readonly #table: PlacementTable;
  readonly #held: HeldBlocks;
  readonly #blockTokens: number;
  #question: RankQuestion | undefined;
  #values: Float64Array;
  #request: PlacementRequest = { promptTokens: 0, expectedOutputTokens: 0 };
  #depths: Uint32Array | undefined;
  #reusableTokens = 0;
  #now = 0;
  /** Row of the worker that served the conversation last; −1 for none. */
  #home = -1;
  #affinityMs = 0;
  /** Of the row whose cost was worked out last. */
  readonly #times = new Float64Array(estimatedCount);
  readonly #terms = new Float64Array(ownTerms.length);
  /** By place in `Eligible.rows`. */
  #ranks = new Float64Array(64);
  /** Places of the best, best first. */
  #best = new Int32Array(64);

  constructor(options: {
    readonly table: PlacementTable;
    readonly index: HeldBlocks;
    readonly blockSizeTokens: number;
  }) {
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
    const ranks = this.#ranks;
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const rank = costRank(this.#costMs(rows[i] as number, isBlind));
      ranks[i] = rank;
      kept = this.#insert(i, kept, keep);
    }
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

  #ask(question: RankQuestion): void {
    const { request, depths, now } = question;
    this.#question = question;
    this.#values = this.#table.columns.values;
    this.#request = request;
    this.#depths = depths;
    this.#reusableTokens = reusableTokens(request.promptTokens, this.#blockTokens);
    this.#now = now;
    const { home, affinityMs = 0 } = request;
    this.#home = home === undefined ? -1 : this.#table.rowOf(home);
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

  /** Enters a place among the best `keep`, of which there are `kept`; returns how many there are then. */
  #insert(place: number, kept: number, keep: number): number {
    const best = this.#best;
    if (kept === keep) {
      if (!this.#isBefore(place, best[kept - 1] as number)) return kept;
      kept--;
    }
    let at = kept;
    while (at > 0 && this.#isBefore(place, best[at - 1] as number)) {
      best[at] = best[at - 1] as number;
      at--;
    }
    best[at] = place;
    return kept + 1;
  }

  /** Cheaper; of equal ones the one with fewer open requests, then the lower id, which is the lower place. */
  #isBefore(a: number, b: number): boolean {
    const left = this.#ranks[a] as number;
    const right = this.#ranks[b] as number;
    if (left !== right) return left < right;
    const open = this.#open(a) - this.#open(b);
    return open !== 0 ? open < 0 : a < b;
  }

  #open(place: number): number {
    const row = this.#question?.eligible.rows[place] as number;
    return this.#values[row * rowLength + column.openRequests] as number;
  }

  #matchedTokens(slot: number): number {
    return Math.min(this.#matchedBlocks(slot) * this.#blockTokens, this.#reusableTokens);
  }

  #matchedBlocks(slot: number): number {
    return slot < 0 || this.#depths === undefined ? 0 : (this.#depths[slot] as number);
  }

  /** Cost of the request on a worker; leaves its times and terms in `#times` and `#terms`. */
  #costMs(row: number, isBlind: boolean): number {
    const values = this.#values;
    const now = this.#now;
    const at = row * rowLength;
    if (
      now >= (values[at + column.linesUntil] as number) ||
      now < (values[at + column.linesFrom] as number)
    ) {
      this.#table.worker(row).book.renew(now as MonoMs);
    }
    const elapsedMs = now - (values[at + column.linesFrom] as number);
    const rate = values[at + column.answerRate] as number;
    const slot = values[at + column.slot] as number;
    values[at + column.contextTokens] = tokensOnLine(
      values[at + column.contextBase] as number,
      rate,
      elapsedMs,
    );
    values[at + column.tokensLeft] = tokensOnLine(
      values[at + column.tokensLeftBase] as number,
      -rate,
      elapsedMs,
    );
    values[at + column.queuedTokens] = tokensOnLine(
      values[at + column.queuedBase] as number,
      values[at + column.queuedRate] as number,
      elapsedMs,
    );
    values[at + column.backlogMs] = Math.max(
      0,
      (values[at + column.prefillFreeAt] as number) - now,
    );
    values[at + column.heldTokens] =
      slot < 0 ? 0 : (this.#held.blockCounts[slot] as number) * this.#blockTokens;
    values[at + column.matchedTokens] = isBlind ? 0 : this.#matchedTokens(slot);
    const { promptTokens, expectedOutputTokens } = this.#request;
    estimateRow(values, at, promptTokens, expectedOutputTokens, this.#times);
    return costOf(this.#times, this.#terms, row === this.#home ? 0 : this.#affinityMs);
  }

  #candidate(row: number): RowCandidate {
    const isBlind = this.#question?.isBlind === true;
    const n = blankNumbers();
    n[candidateNumber.costMs] = this.#costMs(row, isBlind);
    for (let i = 0; i < ownTerms.length; i++) {
      n[candidateNumber.terms + i] = this.#terms[i] as number;
    }
    // What it costs may be blind, what it is expected to take is not.
    if (isBlind) this.#costMs(row, false);
    const times = this.#times;
    const prefillMs = times[estimated.prefillMs] as number;
    n[candidateNumber.predictedTtftMs] =
      (times[estimated.queueMs] as number) + (times[estimated.stallMs] as number) + prefillMs;
    n[candidateNumber.prefillMs] = prefillMs;
    n[candidateNumber.decodeMs] = times[estimated.decodeMs] as number;
    return new RowCandidate(this.#readInto(n, row), n);
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
    n[candidateNumber.reportedAgeMs] = report === undefined ? -1 : this.#now - report.at;
    return worker;
  }

  #reserve(count: number): void {
    if (count > this.#ranks.length) this.#ranks = new Float64Array(2 * count);
    if (count > this.#best.length) this.#best = new Int32Array(2 * count);
  }
}

/** Tokens of a prompt that can come from a cache: whole blocks, and never the last token. */
export function reusableTokens(promptTokens: number, blockSizeTokens: number): number {
  return Math.floor(Math.max(0, promptTokens - 1) / blockSizeTokens) * blockSizeTokens;
}
