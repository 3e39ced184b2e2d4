import type { WorkerId } from "../../../shared/core/ids.ts";
import { seedOf } from "./baselines/draw.ts";
import type { CostWeights } from "./estimate.ts";
import { createPolicy } from "./policies.ts";
import type { PlacementPolicy, PolicyName } from "./policy.ts";

/** The policy of each pool with whose turn it is there, and what policies want to hear of requests. */
export class PoolPolicies {
  readonly #default: PolicyName;
  readonly #seedPrefix: string;
  readonly #weights: CostWeights;
  readonly #policies = new Map<string, PlacementPolicy>();
  readonly #turns = new Map<string, number>();

  /** `seedPrefix`: routers with different ones draw independently of each other. */
  constructor(options: {
    readonly policy: PolicyName;
    readonly seedPrefix: string;
    readonly weights: CostWeights;
  }) {
    this.#default = options.policy;
    this.#seedPrefix = options.seedPrefix;
    this.#weights = options.weights;
  }

  /** Name of a pool's policy. */
  nameOf(pool: string): PolicyName {
    return this.#policies.get(pool)?.name ?? this.#default;
  }

  /** Changes the policy of a pool, whose state begins anew; returns the one before. */
  set(pool: string, policy: PolicyName): PolicyName {
    const before = this.nameOf(pool);
    this.#policies.set(pool, this.#create(pool, policy));
    return before;
  }

  /** A pool's policy. */
  of(pool: string): PlacementPolicy {
    let policy = this.#policies.get(pool);
    if (policy === undefined) {
      policy = this.#create(pool, this.#default);
      this.#policies.set(pool, policy);
    }
    return policy;
  }

  /** Requests placed in a pool so far. */
  turnOf(pool: string): number {
    return this.#turns.get(pool) ?? 0;
  }

  /** The request of this turn was placed. */
  turnTaken(pool: string, turn: number): void {
    this.#turns.set(pool, turn + 1);
  }

  /**
   * The first token of a request has been seen. Only baselines want to know, those of peers that sit in the path of
   * answers: a router hears of it from nobody before the access log, and ours needs it no earlier.
   */
  firstToken(decisionId: string): void {
    for (const policy of this.#policies.values()) policy.firstToken?.(decisionId);
  }

  /** A request ended, by whatever way. */
  closed(decisionId: string): void {
    for (const policy of this.#policies.values()) policy.closed?.(decisionId);
  }

  /** A worker left a pool for good. */
  workerLeft(pool: string, worker: WorkerId): void {
    this.#policies.get(pool)?.workerLeft?.(worker);
  }

  #create(pool: string, name: PolicyName): PlacementPolicy {
    return createPolicy(name, seedOf(`${this.#seedPrefix}/${pool}`), this.#weights);
  }
}
