import type { WorkerId } from "../../../../shared/core/ids.ts";
import type { CandidateInput } from "../candidate.ts";
import type { Placed, PlacementPolicy, PolicyRequest, Score } from "../policy.ts";
import { draw } from "./draw.ts";
import { PrefixMemory } from "./prefix-memory.ts";

/** Running requests that the busiest worker may have more than the idlest before prefixes are not looked at. */
const imbalanceMax = 8;
/** Standard deviations above the mean of running requests that a worker with a match may have. */
const deviationsMax = 1;
/** Blocks remembered of a worker. */
const blocksMax = 200_000;

/**
 * AIBrix's `prefix-cache` routing (v0.6, limits of its ENV_VARS.md: 8 requests, 1 standard deviation). Workers that the
 * router has sent a prefix of the prompt to, longest match in whole percent first, then fewest running requests: the first
 * with no more running than mean + deviation. Without one, or when load is uneven, the fewest running requests, equal ones
 * at random. Running requests are the router's own count, as there; prefixes are what it has sent, in blocks of the
 * mesh.
 */
export class AibrixPrefix implements PlacementPolicy {
  readonly name = "aibrix-prefix";
  readonly #seed: number;
  readonly #memory = new PrefixMemory({ blocksMax, ttlMs: Infinity });

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** Places in the order of the rule. */
  score(candidates: readonly CandidateInput[], request: PolicyRequest): Score[] {
    const running = candidates.map((c) => c.load.openRequests);
    const blocks = request.hashes.length / 2;
    const isUneven = Math.max(...running) - Math.min(...running) > imbalanceMax;
    const limit = meanAndDeviation(running);
    const percents = candidates.map(({ workerId }, i) => {
      const isTaken = isUneven || (running[i] as number) > limit;
      if (isTaken || blocks === 0) return 0;
      return Math.floor((100 * this.#memory.match(workerId, request)) / blocks);
    });
    const order = candidates.map((_, i) => i);
    const draws = order.map((i) => draw(this.#seed, request.turn, i));
    const by = (values: readonly number[], a: number, b: number): number =>
      (values[a] as number) - (values[b] as number);
    order.sort((a, b) => -by(percents, a, b) || by(running, a, b) || by(draws, a, b));
    const places = new Array<number>(order.length).fill(0);
    for (const [place, i] of order.entries()) places[i] = place;
    return places.map((place) => ({ terms: [{ name: "choice", ms: place }] }));
  }

  /** Remembers the prompt. */
  placed(request: PolicyRequest, { workerId }: Placed): void {
    this.#memory.sent(workerId, request);
  }

  /** Forgets the worker. */
  workerLeft(workerId: WorkerId): void {
    this.#memory.forget(workerId);
  }
}

function meanAndDeviation(values: readonly number[]): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
  return mean + deviationsMax * Math.sqrt(variance);
}
