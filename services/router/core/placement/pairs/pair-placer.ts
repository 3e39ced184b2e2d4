import type { MonoMs, WorkerId } from "../../../../shared/core/ids.ts";
import type { LoadBook } from "../../load/load-book.ts";
import type { Member } from "../../membership/member.ts";
import type { Relay, RelayRoster } from "../../relays/relay-roster.ts";
import type { ScoredCandidate } from "../candidate.ts";
import type { CostWeights } from "../estimate.ts";
import { costRank } from "../place.ts";
import type { PlacementTable } from "../placement-table.ts";
import { plainCandidate } from "../row-candidate.ts";
import type { RowRanker } from "../row-ranking.ts";
import type { DecisionPair, PairWhy } from "./decision-pair.ts";
import { itlCostMs } from "./itl-target.ts";
import { LinkBook, type LinkPrior } from "./link-book.ts";
import { PairLegs } from "./pair-legs.ts";
import { PairMembers } from "./pair-members.ts";
import { PrefillShares } from "./prefill-share.ts";
import { PairSearch, pairsKept, type FoundPair, type PairQuestion } from "./pair-search.ts";

/** Whether requests may run as pairs: by cost, never, or whenever a pair can be had. */
export const disaggregationModes = ["auto", "never", "always"] as const;

/** One of `disaggregationModes`. */
export type DisaggregationMode = (typeof disaggregationModes)[number];

/** Settings of `PairPlacer`. */
export interface PairOptions {
  readonly mode: DisaggregationMode;
  /** Added to the cost of pairs when it is compared with that of running whole, ms; negative favours pairs. */
  readonly biasMs: number;
  /** Bytes moved for one token where an engine does not tell. */
  readonly kvBytesPerTokenDefault: number;
  /** Links before anything was seen of them. */
  readonly sameHost: LinkPrior;
  readonly acrossHosts: LinkPrior;
  readonly linksMax: number;
}

/**
 * Links assumed: within a host what one TCP stream does over loopback or PCIe copies through memory, between hosts half of a
 * 25 Gbit/s network. The first transfers overrule them. Bytes of a token: Llama-3.1-8B in BF16.
 */
export const pairDefaults: PairOptions = {
  mode: "auto",
  biasMs: 0,
  kvBytesPerTokenDefault: 131_072,
  sameHost: { latencyMs: 2, bytesPerMs: 4e6 },
  acrossHosts: { latencyMs: 4, bytesPerMs: 1.5e6 },
  linksMax: 65_536,
};

/** A request as pairs are considered for it. */
export interface PairAsk extends Omit<PairQuestion, "group"> {
  readonly requestId: string;
  readonly pool: string;
  /** Whether it can be split at all. */
  readonly isPairable: boolean;
  /** Cost of running it whole, ms; `undefined` when nobody can. */
  readonly wholeCostMs: number | undefined;
  /** Time between tokens expected then, ms. */
  readonly wholeItlMs: number;
  /** Whether that cost is a time. */
  readonly isComparable: boolean;
  /** Relays named at most. */
  readonly relaysMax: number;
}

/** What came of considering pairs. */
export interface PairVerdict {
  readonly choice: DecisionPair;
  /** The pair to place; absent when the request is to run whole. */
  readonly found?: FoundPair;
  readonly relays: readonly Relay[];
}

/** The two sides of a pair as admission and reservations look at workers. */
export interface PairSides {
  readonly prefill: ScoredCandidate;
  readonly decode: ScoredCandidate;
}

/**
 * Pairs of workers for requests: who may take part, how links do, which pair is best, and whether it beats running whole.
 * Costs nothing in pools without engines that hand KV to each other.
 */
export class PairPlacer {
  readonly members: PairMembers;
  readonly links: LinkBook;
  readonly legs: PairLegs;
  readonly #options: PairOptions;
  readonly #relays: RelayRoster;
  readonly #table: PlacementTable;
  readonly #ranker: RowRanker;
  readonly #search: PairSearch;
  readonly #prefillShares = new PrefillShares();
  /** Of pools whose mode was changed while running. */
  readonly #modes = new Map<string, DisaggregationMode>();

  constructor(
    options: PairOptions,
    of: {
      readonly relays: RelayRoster;
      readonly table: PlacementTable;
      readonly ranker: RowRanker;
      readonly book: LoadBook;
      readonly weights: CostWeights;
      readonly blockSizeTokens: number;
    },
  ) {
    const { relays, table, ranker, book, weights, blockSizeTokens } = of;
    this.#options = options;
    this.#relays = relays;
    this.#table = table;
    this.#ranker = ranker;
    this.members = new PairMembers({ bytesPerTokenDefault: options.kvBytesPerTokenDefault });
    this.links = new LinkBook(options);
    this.legs = new PairLegs({ book, links: this.links, table });
    this.#search = new PairSearch({
      table,
      ranker,
      members: this.members,
      links: this.links,
      weights,
      blockSizeTokens,
      awaitedTokens: (row) => this.legs.awaitedTokens(row),
      prefillShare: (row, now) => this.#prefillShares.of(row, now),
    });
  }

  /** Changes whether a pool's requests may run as pairs. Pools are as many as have members, and the one of the settings. */
  setMode(pool: string, mode: DisaggregationMode): void {
    this.#modes.set(pool, mode);
  }

  /** Whether a pool's requests may run as pairs by its mode alone. */
  modeOf(pool: string): DisaggregationMode {
    return this.#modes.get(pool) ?? this.#options.mode;
  }

  /** Whether a pool's requests may run as pairs, as far as settings, engines and relays go. */
  isPossible(pool: string): boolean {
    if (this.modeOf(pool) === "never" || this.#relays.size === 0) return false;
    return this.members.groupsOf(pool).some(({ engine }) => this.#relays.has(engine));
  }

  /** Whether a worker's engine takes the legs of a pair one after the other. */
  isSequential(worker: WorkerId): boolean {
    return this.members.engineOf(worker) !== "sglang";
  }

  /** A prompt of a pair was placed on a worker, here or by a peer. */
  prefillPlaced(worker: WorkerId, prefillMs: number, now: MonoMs): void {
    const row = this.#table.rowOf(worker);
    if (row >= 0) this.#prefillShares.placed(row, prefillMs, now);
  }

  /** Share of its time that a worker's engine spends on prompts of pairs, 0 to 0.9. */
  prefillShare(worker: WorkerId, now: MonoMs): number {
    return this.#prefillShares.of(this.#table.rowOf(worker), now);
  }

  /** A member joined or changed. */
  memberChanged(member: Member): void {
    this.members.memberChanged(member, this.#table.rowOf(member.key));
  }

  /** A member left; its row must still be known. */
  memberLeft(key: WorkerId): void {
    this.members.memberLeft(key);
    this.legs.forget(key);
    const row = this.#table.rowOf(key);
    if (row < 0) return;
    this.links.forget(row);
    this.#prefillShares.forget(row);
  }

  /** Whether the pool offers pairs at all, so that `consider` has something to say. */
  offers(pool: string): boolean {
    return this.modeOf(pool) !== "never" && this.members.hasPairs(pool);
  }

  /** Compares the best pair with running whole. */
  consider(ask: PairAsk): PairVerdict {
    const groups = this.members.groupsOf(ask.pool).filter(({ engine }) => this.#relays.has(engine));
    const { itlTargetMs, wholeItlMs, expectedOutputTokens } = ask;
    const lateMs = itlCostMs(wholeItlMs, itlTargetMs, expectedOutputTokens);
    if (groups.length === 0) return whole("no_relay");
    if (!ask.isPairable) return whole("request_form");
    let found: FoundPair[] = [];
    let engine = groups[0]?.engine;
    for (const group of groups) {
      const more = this.#search.search({ ...ask, group });
      if (cheapest(more) < cheapest(found)) engine = group.engine;
      found = found.length === 0 ? more : merge(found, more);
    }
    const [best] = found;
    if (best === undefined || engine === undefined) return whole("no_pair");
    const candidates = found.map(({ candidate }) => candidate);
    const { biasMs } = this.#options;
    const mode = this.modeOf(ask.pool);
    const wholeCostMs = ask.wholeCostMs === undefined ? undefined : ask.wholeCostMs + lateMs;
    const itl: Pick<DecisionPair, "itl"> =
      itlTargetMs > 0
        ? {
            itl: {
              targetMs: itlTargetMs,
              pairMs: best.candidate.itlMs,
              wholeMs: wholeItlMs,
              wholeCostMs: lateMs,
            },
          }
        : {};
    const savedMs = (wholeCostMs ?? 0) - best.candidate.costMs;
    let why: PairWhy = "only_form";
    if (wholeCostMs !== undefined) {
      if (mode === "always") why = "always";
      else if (!ask.isComparable) return whole("policy", { candidates, ...itl });
      else if (costRank(best.candidate.costMs + biasMs) >= costRank(wholeCostMs)) {
        return whole("cheaper", { candidates, marginMs: -savedMs, ...itl });
      } else why = "cheaper";
    }
    const relays = this.#relays.pick(ask.requestId, engine, ask.relaysMax);
    if (relays.length === 0) return whole("no_relay", { candidates, marginMs: -savedMs, ...itl });
    const marginMs = wholeCostMs === undefined ? 0 : savedMs;
    const names = relays.map(({ facts }) => facts.instance);
    return {
      choice: { form: "pair", why, marginMs, candidates, relays: names, ...itl },
      found: best,
      relays,
    };
  }

  /** A verdict for running whole after all, since its pair has no room. */
  static withoutRoom({ choice }: PairVerdict): PairVerdict {
    return whole("no_room", { ...choice, marginMs: -choice.marginMs });
  }

  /** The workers of a pair as candidates of their own; the answer is decoded where all but the last token is cached. */
  sides(found: FoundPair, ask: PairAsk): PairSides {
    const { promptTokens, expectedOutputTokens, depths, isBlind, now } = ask;
    const question = { depths, isBlind, now };
    const prefill = this.#ranker.candidate(found.prefillRow, {
      ...question,
      request: { promptTokens, expectedOutputTokens: 1 },
    });
    const decode = plainCandidate(
      this.#ranker.candidate(found.decodeRow, {
        ...question,
        request: { promptTokens, expectedOutputTokens },
      }),
    );
    const { candidate } = found;
    return {
      prefill,
      decode: {
        ...decode,
        matchedTokens: promptTokens - 1,
        prefillMs: candidate.term("first_step"),
        decodeMs: candidate.term("decode"),
      },
    };
  }

  /** What a decision shows as its candidate: decoded here, with what the prefill worker has of the prompt. */
  static chosenOf(found: FoundPair, { prefill, decode }: PairSides): ScoredCandidate {
    const { candidate } = found;
    return {
      ...decode,
      matchedBlocks: prefill.matchedBlocks,
      matchedTokens: prefill.matchedTokens,
      suspect: prefill.suspect,
      prefillMs: prefill.prefillMs,
      costMs: candidate.costMs,
      predictedTtftMs: candidate.predictedTtftMs,
      terms: [],
    };
  }

  /** Enters both legs in the load book; false, with nothing entered, when it is full. */
  reserve(
    book: LoadBook,
    of: {
      readonly decisionId: string;
      readonly prefillKey: string;
      readonly found: FoundPair;
      readonly promptTokens: number;
      readonly expectedOutputTokens: number;
      readonly now: MonoMs;
    },
  ): boolean {
    const { decisionId, prefillKey, found, promptTokens, expectedOutputTokens, now } = of;
    const { candidate } = found;
    const shared = { own: true, openedAt: now, promptTokens, prefillEndsAt: now, endsAt: now };
    const isPrefillOpen = book.open(
      {
        ...shared,
        decisionId: prefillKey,
        workerId: candidate.prefillWorkerId,
        uncachedTokens: promptTokens - candidate.prefillMatchedTokens,
        expectedOutputTokens: 1,
        prefillMs: candidate.term("prefill"),
        hardEndAt: now,
        leg: "prefill",
      },
      0,
    );
    if (!isPrefillOpen) return false;
    this.prefillPlaced(candidate.prefillWorkerId, candidate.term("prefill"), now);
    const beginsInMs = candidate.predictedTtftMs;
    const isOpen = book.open(
      {
        ...shared,
        decisionId,
        workerId: candidate.decodeWorkerId,
        uncachedTokens: 0,
        expectedOutputTokens,
        prefillMs: 0,
        hardEndAt: now,
        leg: "decode",
        beginsInMs,
        arrivesAt: Infinity,
      },
      candidate.term("decode"),
    );
    if (!isOpen) {
      book.close(prefillKey, "released", now);
      return false;
    }
    this.legs.opened(
      {
        decisionId,
        prefillWorker: candidate.prefillWorkerId,
        decodeWorker: candidate.decodeWorkerId,
        transferBytes: candidate.transferBytes,
        movedTokens: promptTokens - candidate.decodeMatchedTokens,
        beginsInMs: Math.max(0, beginsInMs - candidate.prefillEndsInMs),
      },
      true,
      now,
    );
    return true;
  }
}

function whole(why: PairWhy, of: Partial<DecisionPair> = {}): PairVerdict {
  const compared = { marginMs: 0, candidates: [], ...of };
  return { choice: { ...compared, form: "whole", why, relays: [] }, relays: [] };
}

function cheapest(found: readonly FoundPair[]): number {
  return found[0]?.candidate.costMs ?? Infinity;
}

function merge(a: readonly FoundPair[], b: readonly FoundPair[]): FoundPair[] {
  return [...a, ...b]
    .sort((x, y) => costRank(x.candidate.costMs) - costRank(y.candidate.costMs))
    .slice(0, pairsKept);
}
