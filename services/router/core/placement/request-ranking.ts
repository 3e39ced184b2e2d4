import type { MonoMs } from "../../../shared/core/ids.ts";
import type { SessionHomes } from "../admission/session-homes.ts";
import type { KvIndex } from "../kv-index/kv-index.ts";
import type { Members } from "../membership/members.ts";
import { rank } from "./place.ts";
import type { PlaceInput } from "./place-input.ts";
import type { Eligible, PlacementTable } from "./placement-table.ts";
import type { PoolPolicies } from "./pool-policies.ts";
import type { PlacementPolicy, PolicyRequest } from "./policy.ts";
import { shortRanking, type RowRanker, type ShortRanking } from "./row-ranking.ts";

/** The workers of a request's pool in order of preference, by the pool's policy. */
export interface RankedRequest {
  readonly ranking: ShortRanking;
  readonly request: PolicyRequest;
  readonly policy: PlacementPolicy;
}

/** Settings of `RequestRanking`. */
export interface RequestRankingOptions {
  readonly blockSizeTokens: number;
  readonly membersMax: number;
  /** Answer length assumed before any answer has been seen, tokens. */
  readonly outputTokensDefault: number;
  /** Candidates wanted beside the first. */
  readonly fallbacksMax: number;
  /** What a request costs on another worker than the one that served its conversation last, ms. */
  readonly affinityMs: number;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** Looks up what workers have of a request's prompt and ranks those that may serve it. */
export class RequestRanking {
  readonly #options: RequestRankingOptions;
  readonly #members: Members;
  readonly #index: KvIndex;
  readonly #table: PlacementTable;
  readonly #ranker: RowRanker;
  readonly #policies: PoolPolicies;
  readonly #homes: SessionHomes;
  /** Leading blocks of the prompt looked up last that each slot of the index holds. */
  readonly #depths: Uint32Array;

  constructor(
    options: RequestRankingOptions,
    of: {
      readonly members: Members;
      readonly index: KvIndex;
      readonly table: PlacementTable;
      readonly ranker: RowRanker;
      readonly policies: PoolPolicies;
      readonly homes: SessionHomes;
    },
  ) {
    this.#options = options;
    this.#members = of.members;
    this.#index = of.index;
    this.#table = of.table;
    this.#ranker = of.ranker;
    this.#policies = of.policies;
    this.#homes = of.homes;
    this.#depths = new Uint32Array(options.membersMax);
  }

  /**
   * The length of a prompt that was not read is guessed from the size of its body, which may hold pictures or more than
   * one prompt. The guess refuses nothing, and counts for no more than an engine can take.
   */
  withinContext(input: PlaceInput): PlaceInput {
    if (input.loadOnlyReason === "") return input;
    const contextMax = this.#table.contextMax(input.pool);
    if (contextMax === 0 || input.promptTokens < contextMax) return input;
    return { ...input, promptTokens: contextMax - 1 };
  }

  /** Who may serve a request whole. */
  eligible(input: PlaceInput): Eligible {
    const { pool, promptTokens, subset, excluded, loadOnlyReason } = input;
    return this.#table.eligible({
      pool,
      promptTokens,
      isCounted: loadOnlyReason === "",
      subset,
      excluded,
    });
  }

  /** What `rank` has found of the prompt, by slot of the index; `undefined` when it has no full block. Until the next. */
  depthsOf(input: PlaceInput): Uint32Array | undefined {
    return input.hashes.length > 0 ? this.#depths : undefined;
  }

  /** Ranks them. `session`: the conversation that the request belongs to, empty for none. */
  rank(
    input: PlaceInput,
    eligible: Eligible,
    now: MonoMs,
    session = input.session ?? "",
  ): RankedRequest {
    const { blockSizeTokens, affinityMs, fallbacksMax } = this.#options;
    const blockCount = input.hashes.length / 2;
    if (blockCount > 0) this.#index.matchPrefix(input.hashes, blockCount, this.#depths);
    const request: Mutable<PolicyRequest> = {
      promptTokens: input.promptTokens,
      expectedOutputTokens: this.#expectedOutput(eligible, input.tokensMax),
      hashes: input.hashes,
      blockSizeTokens,
      session,
      turn: this.#policies.turnOf(input.pool),
      now,
    };
    const home = this.#homes.homeOf(session, now);
    if (home !== undefined && this.#members.get(home)?.pool === input.pool) {
      request.home = home;
      request.affinityMs = affinityMs;
    }
    const policy = this.#policies.of(input.pool);
    const question = {
      eligible,
      request,
      depths: this.depthsOf(input),
      isBlind: policy.name === "kv-blind",
      least: 1 + fallbacksMax,
      now,
    };
    const isOwn = policy.name === "kv" || policy.name === "kv-blind";
    const ranking = isOwn
      ? this.#ranker.rank(question)
      : shortRanking(rank(this.#ranker.inputs(question), request, policy), question.least);
    return { ranking, request, policy };
  }

  #expectedOutput({ outputTokensMean }: Eligible, tokensMax: number | undefined): number {
    const expected = Number.isNaN(outputTokensMean)
      ? this.#options.outputTokensDefault
      : Math.round(outputTokensMean);
    return Math.max(1, Math.min(expected, tokensMax ?? expected));
  }
}
