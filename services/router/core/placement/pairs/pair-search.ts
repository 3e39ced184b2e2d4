import type { MonoMs } from "../../../../shared/core/ids.ts";
import { column, rowLength } from "../../load/worker-columns.ts";
import {
  costRows,
  estimated,
  estimatedCount,
  tailOf,
  type CostWeights,
  type Estimate,
} from "../estimate.ts";
import { costRank } from "../place.ts";
import type { PlacementTable } from "../placement-table.ts";
import type { RowRanker } from "../row-ranking.ts";
import { besidePrompts, itlCostMs, mixedMs } from "./itl-target.ts";
import type { LinkBook, TransferForecast } from "./link-book.ts";
import { PairCandidate, pairNumber, pairNumberCount, pairTerms } from "./pair-candidate.ts";
import type { PairGroup, PairMembers } from "./pair-members.ts";

/** Workers of either side whose combinations are looked at. */
export const sideMax = 8;
/** Pairs that are kept. */
export const pairsKept = 3;

/** A request for which a pair is looked for. */
export interface PairQuestion {
  readonly group: PairGroup;
  readonly promptTokens: number;
  /** Whether its tokens were counted, so that its length may rule workers out. */
  readonly isCounted: boolean;
  readonly expectedOutputTokens: number;
  /** Leading blocks of the prompt by slot of the KV index; `undefined` when there are none to look for. */
  readonly depths: Uint32Array | undefined;
  readonly isBlind: boolean;
  /** Row of the worker that served the conversation last; −1 for none. */
  readonly homeRow: number;
  /** What decoding anywhere else costs, ms. */
  readonly affinityMs: number;
  /** Time between tokens that it asks for, ms; 0 for none. */
  readonly itlTargetMs: number;
  /** Whether a worker may be chosen at all. */
  readonly allows: (row: number) => boolean;
  readonly now: MonoMs;
}

/** A pair with the rows of its workers. */
export interface FoundPair {
  readonly prefillRow: number;
  readonly decodeRow: number;
  readonly candidate: PairCandidate;
}

/** What a pair is put together from. */
export interface PairParts {
  readonly prefill: Estimate;
  readonly decode: Estimate;
  readonly transfer: TransferForecast;
  readonly affinityMs: number;
  /** What a time between tokens beyond the one asked for costs, ms. */
  readonly itlCostMs: number;
}

/**
 * The terms of a pair, in the order of `pairTerms`, and the expected time to its first token: the prompt on one worker, its
 * KV over the link, the last position on the other. The sum of the terms is the cost, of the same parts as that of a whole
 * request: one tail for all that comes before the first token, and what either worker's other requests lose.
 */
export function pairCost(
  parts: PairParts,
  weights: CostWeights,
  into: Float64Array | number[],
): void {
  const { prefill: p, decode: d, transfer, affinityMs, itlCostMs: lateMs } = parts;
  const { waitMs, moveMs } = transfer;
  const moved = waitMs + moveMs;
  const predictedMs = p.queueMs + p.stallMs + p.prefillMs + moved + d.queueMs + d.stallMs;
  const firstMs = predictedMs + d.prefillMs + p.memoryMs + d.memoryMs;
  const at = pairNumber.terms;
  into[at] = p.queueMs;
  into[at + 1] = p.memoryMs;
  into[at + 2] = p.stallMs;
  into[at + 3] = p.prefillMs;
  into[at + 4] = waitMs;
  into[at + 5] = moveMs;
  into[at + 6] = d.queueMs;
  into[at + 7] = d.memoryMs;
  into[at + 8] = d.stallMs;
  into[at + 9] = d.prefillMs;
  into[at + 10] = tailOf(firstMs, weights.tailMs);
  into[at + 11] = d.decodeMs;
  into[at + 12] = p.slowdownMs + d.slowdownMs;
  into[at + 13] = p.evictionMs + d.evictionMs;
  into[at + 14] = affinityMs;
  into[at + 15] = lateMs;
  let cost = 0;
  for (let i = 0; i < pairTerms.length; i++) cost += into[at + i] as number;
  into[pairNumber.costMs] = cost;
  into[pairNumber.predictedTtftMs] = predictedMs + d.prefillMs;
}

/** One side's best workers with their estimates. */
class Side {
  rows = new Int32Array(64);
  count = 0;
  costs = new Float64Array(64);
  /** Places of the best, best first. */
  readonly best = new Int32Array(sideMax);
  bestCount = 0;
  readonly estimates: Estimate[] = [];
  /** Tokens of the prompt cached there, by place. */
  matched = new Float64Array(64);
  /** Time between tokens expected there, by place, ms. */
  itlMs = new Float64Array(64);

  reserve(count: number): void {
    if (count <= this.rows.length) return;
    this.rows = new Int32Array(2 * count);
    this.costs = new Float64Array(2 * count);
    this.matched = new Float64Array(2 * count);
    this.itlMs = new Float64Array(2 * count);
  }

  /** Puts the places of the `sideMax` cheapest in order; of equal ones the lower id, which is the lower place. */
  select(): void {
    const { best, costs } = this;
    let kept = 0;
    for (let place = 0; place < this.count; place++) {
      const cost = costs[place] as number;
      if (kept === sideMax && cost >= (costs[best[kept - 1] as number] as number)) continue;
      let at = kept < sideMax ? kept++ : kept - 1;
      while (at > 0 && cost < (costs[best[at - 1] as number] as number)) {
        best[at] = best[at - 1] as number;
        at--;
      }
      best[at] = place;
    }
    this.bestCount = kept;
  }
}

function readEstimate(times: Float64Array): Estimate {
  return {
    queueMs: times[estimated.queueMs] as number,
    memoryMs: times[estimated.memoryMs] as number,
    stallMs: times[estimated.stallMs] as number,
    prefillMs: times[estimated.prefillMs] as number,
    decodeMs: times[estimated.decodeMs] as number,
    slowdownMs: times[estimated.slowdownMs] as number,
    evictionMs: times[estimated.evictionMs] as number,
  };
}

/**
 * Finds the cheapest pairs: `costRows` over all workers of either side, then all combinations of the best eight of each with
 * the links between them, so O(workers + 64). The best pair can be missed only where a link outweighs what lies between the
 * first and the ninth worker of a side. Deterministic.
 */
export class PairSearch {
  readonly #table: PlacementTable;
  readonly #ranker: RowRanker;
  readonly #members: PairMembers;
  readonly #links: LinkBook;
  readonly #weights: CostWeights;
  readonly #blockTokens: number;
  /** Prompt tokens that are on their way to the engine of a row. */
  readonly #awaited: (row: number) => number;
  /** Share of its time that the engine of a row spends on prompts for others. */
  readonly #prefillShare: (row: number, now: MonoMs) => number;
  readonly #prefill = new Side();
  readonly #decode = new Side();
  readonly #times = new Float64Array(estimatedCount);
  readonly #oneRow = new Int32Array(1);
  readonly #oneCost = new Float64Array(1);
  readonly #forecast: TransferForecast = { waitMs: 0, moveMs: 0 };

  constructor(options: {
    readonly table: PlacementTable;
    readonly ranker: RowRanker;
    readonly members: PairMembers;
    readonly links: LinkBook;
    readonly weights: CostWeights;
    readonly blockSizeTokens: number;
    readonly awaitedTokens: (row: number) => number;
    readonly prefillShare: (row: number, now: MonoMs) => number;
  }) {
    this.#table = options.table;
    this.#ranker = options.ranker;
    this.#members = options.members;
    this.#links = options.links;
    this.#weights = options.weights;
    this.#blockTokens = options.blockSizeTokens;
    this.#awaited = options.awaitedTokens;
    this.#prefillShare = options.prefillShare;
  }

  /** The cheapest pairs, best first, at most `pairsKept`; none when no two engines can serve the request. */
  search(question: PairQuestion): FoundPair[] {
    const { group } = question;
    this.#gather(this.#prefill, group.prefill, question);
    this.#gather(this.#decode, group.decode, question);
    if (this.#prefill.count === 0 || this.#decode.count === 0) return [];
    this.#costPrefill(question);
    this.#costDecode(question);
    return this.#combine(question);
  }

  #gather(side: Side, from: PairGroup["prefill"], question: PairQuestion): void {
    const { promptTokens, isCounted, allows } = question;
    side.reserve(from.count);
    const { values } = this.#table.columns;
    let count = 0;
    for (let i = 0; i < from.count; i++) {
      const row = from.rows[i] as number;
      const limit = values[row * rowLength + column.promptTokensLimit] as number;
      if (isCounted && promptTokens >= limit) continue;
      if (allows(row)) side.rows[count++] = row;
    }
    side.count = count;
  }

  #prepare(side: Side, question: PairQuestion, expectedOutputTokens: number): Float64Array {
    const { promptTokens, depths, isBlind, now } = question;
    const request = { promptTokens, expectedOutputTokens };
    return this.#ranker.prepare(side, { request, depths, isBlind, now });
  }

  #costPrefill(question: PairQuestion): void {
    const side = this.#prefill;
    const values = this.#prepare(side, question, 1);
    this.#costs(values, side.rows, side.count, question.promptTokens, 1, side.costs);
    for (let i = 0; i < side.count; i++) {
      const at = (side.rows[i] as number) * rowLength;
      side.matched[i] = values[at + column.matchedTokens] as number;
    }
    side.select();
    this.#estimates(values, question.promptTokens, 1, side);
  }

  /**
   * Decode as the one formula has it for a prompt of which only the last token is to be computed, whose blocks fill the
   * memory all the same; the prompts that wait there are computed while this one is elsewhere.
   */
  #costDecode(question: PairQuestion): void {
    const side = this.#decode;
    const { promptTokens, expectedOutputTokens } = question;
    const values = this.#prepare(side, question, expectedOutputTokens);
    const best = this.#prefill.best[0] as number;
    const first = this.#prefill.estimates[0] as Estimate;
    const arrivesInMs = first.queueMs + first.memoryMs + first.stallMs + first.prefillMs;
    for (let i = 0; i < side.count; i++) {
      const row = side.rows[i] as number;
      const at = row * rowLength;
      const matched = values[at + column.matchedTokens] as number;
      side.matched[i] = matched;
      const moved = promptTokens - matched;
      const queued = values[at + column.queuedTokens] as number;
      const backlogMs = values[at + column.backlogMs] as number;
      values[at + column.queuedTokens] = queued + moved + this.#awaited(row);
      values[at + column.heldTokens] = (values[at + column.heldTokens] as number) + moved;
      values[at + column.backlogMs] = Math.max(0, backlogMs - arrivesInMs);
      values[at + column.matchedTokens] = promptTokens - 1;
    }
    this.#costs(values, side.rows, side.count, promptTokens, expectedOutputTokens, side.costs);
    const from = this.#prefill.rows[best] as number;
    for (let i = 0; i < side.count; i++) {
      const row = side.rows[i] as number;
      const bytes = this.#bytes(question, from, side.matched[i] as number);
      this.#transfer(from, row, bytes, first.prefillMs);
      const { waitMs, moveMs } = this.#forecast;
      const affinityMs = row === question.homeRow ? 0 : question.affinityMs;
      const itlMs = this.#itlMs(values, row, question);
      side.itlMs[i] = itlMs;
      const lateMs = itlCostMs(itlMs, question.itlTargetMs, expectedOutputTokens);
      side.costs[i] = (side.costs[i] as number) + waitMs + moveMs + affinityMs + lateMs;
    }
    side.select();
    this.#estimates(values, promptTokens, expectedOutputTokens, side);
  }

  /** Time between tokens expected on a decode worker, which pays for prompts only if it computes some itself, ms. */
  #itlMs(values: Float64Array, row: number, question: PairQuestion): number {
    const { promptTokens, expectedOutputTokens } = question;
    if (expectedOutputTokens <= 1) return 0;
    const at = row * rowLength;
    const others =
      (values[at + column.decoding] as number) + (values[at + column.foreignRequests] as number);
    const context = (values[at + column.contextTokens] as number) + promptTokens;
    const stepMs =
      (values[at + column.d0] as number) +
      (values[at + column.d1] as number) * (others + 1) +
      (values[at + column.d2] as number) * (context + expectedOutputTokens / 2);
    if (!this.#members.prefills(row)) return stepMs;
    const extraMs =
      (values[at + column.c1] as number) * promptTokens +
      ((values[at + column.c2] as number) * promptTokens * promptTokens) / 2;
    const gapMs = besidePrompts(stepMs, this.#prefillShare(row, question.now));
    return gapMs + mixedMs(others, extraMs, expectedOutputTokens);
  }

  #combine(question: PairQuestion): FoundPair[] {
    const { homeRow, affinityMs, itlTargetMs, expectedOutputTokens } = question;
    const prefill = this.#prefill;
    const decode = this.#decode;
    const found: FoundPair[] = [];
    const numbers = new Float64Array(pairNumberCount);
    for (let i = 0; i < prefill.bestCount; i++) {
      const prefillPlace = prefill.best[i] as number;
      const from = prefill.rows[prefillPlace] as number;
      const first = prefill.estimates[i] as Estimate;
      for (let j = 0; j < decode.bestCount; j++) {
        const decodePlace = decode.best[j] as number;
        const to = decode.rows[decodePlace] as number;
        const source = this.#table.worker(from);
        const target = this.#table.worker(to);
        if (source.named.endpoint === target.named.endpoint) continue;
        const matched = decode.matched[decodePlace] as number;
        const itlMs = decode.itlMs[decodePlace] as number;
        const bytes = this.#bytes(question, from, matched);
        this.#transfer(from, to, bytes, first.prefillMs);
        pairCost(
          {
            prefill: first,
            decode: decode.estimates[j] as Estimate,
            transfer: this.#forecast,
            affinityMs: to === homeRow ? 0 : affinityMs,
            itlCostMs: itlCostMs(itlMs, itlTargetMs, expectedOutputTokens),
          },
          this.#weights,
          numbers,
        );
        numbers[pairNumber.prefillMatchedTokens] = prefill.matched[prefillPlace] as number;
        numbers[pairNumber.decodeMatchedTokens] = matched;
        numbers[pairNumber.transferBytes] = bytes;
        numbers[pairNumber.itlMs] = itlMs;
        const at = placeOf(found, numbers[pairNumber.costMs] as number);
        if (at >= pairsKept) continue;
        const candidate = new PairCandidate(source.named, target.named, numbers.slice());
        found.splice(at, 0, { prefillRow: from, decodeRow: to, candidate });
        if (found.length > pairsKept) found.pop();
      }
    }
    return found;
  }

  /** Bytes to move: the prompt's blocks less those that the decode worker has. */
  #bytes({ promptTokens }: PairQuestion, from: number, matchedTokens: number): number {
    const blocks = Math.ceil((promptTokens - matchedTokens) / this.#blockTokens);
    return blocks * this.#blockTokens * this.#members.bytesPerToken(from);
  }

  #transfer(from: number, to: number, bytes: number, prefillMs: number): void {
    const isSameHost = this.#table.worker(from).host === this.#table.worker(to).host;
    this.#links.forecast({ from, to, isSameHost }, bytes, prefillMs, this.#forecast);
  }

  #costs(
    values: Float64Array,
    rows: Int32Array,
    count: number,
    promptTokens: number,
    expectedOutputTokens: number,
    costs: Float64Array,
  ): void {
    const weights = this.#weights;
    const request = { promptTokens, expectedOutputTokens, homeRow: -1, affinityMs: 0 };
    costRows({ ...request, weights, values, rows, count, costs, times: this.#times });
  }

  #estimates(
    values: Float64Array,
    promptTokens: number,
    expectedOutputTokens: number,
    side: Side,
  ): void {
    for (let i = 0; i < side.bestCount; i++) {
      this.#oneRow[0] = side.rows[side.best[i] as number] as number;
      this.#costs(values, this.#oneRow, 1, promptTokens, expectedOutputTokens, this.#oneCost);
      side.estimates[i] = readEstimate(this.#times);
    }
  }
}

/** Where a pair of this cost belongs among the best; of equal ones the earlier stays first. */
function placeOf(found: readonly FoundPair[], costMs: number): number {
  const rank = costRank(costMs);
  let at = found.length;
  while (at > 0 && rank < costRank((found[at - 1] as FoundPair).candidate.costMs)) at--;
  return at;
}
