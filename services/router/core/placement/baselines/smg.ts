import type { WorkerId } from "../../../../shared/core/ids.ts";
import type { CandidateInput } from "../candidate.ts";
import type { Placed, PlacementPolicy, PolicyRequest, Score } from "../policy.ts";
import { tieDraw } from "./draw.ts";
import { PrefixMemory } from "./prefix-memory.ts";

/** Share of a prompt that must match for the longest match to win. */
const matchRatioMin = 0.3;
/** Load is uneven when the busiest has more than so many requests more than the idlest, and so many times as many. */
const imbalanceMax = 64;
const imbalanceRatioMax = 1.5;
/** Size of a worker's tree: 2^26 characters at four a token and 16 tokens a block. */
const blocksMax = 2 ** 20;

/**
 * smg's `cache_aware` policy in its tree mode, which is what it does for engines without KV events (Shepherd Model Gateway,
 * formerly sglang-router, 2026; cache threshold 0.3, balance thresholds 64 and 1.5). When load is uneven: the fewest
 * requests. Otherwise the longest prefix that was sent there, if it is more than 0.3 of the prompt, of equal ones the least
 * loaded; else the worker with the smallest tree. Requests are the router's own count. Trees are kept in blocks of the
 * mesh in place of characters.
 */
export class Smg implements PlacementPolicy {
  readonly name = "smg";
  readonly #seed: number;
  readonly #memory = new PrefixMemory({ blocksMax, ttlMs: Infinity });

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** What the branch of the rule that applies counts: requests, unmatched blocks, or size of the tree. */
  score(candidates: readonly CandidateInput[], request: PolicyRequest): Score[] {
    const memory = this.#memory;
    const loads = candidates.map((c) => c.load.openRequests);
    const most = Math.max(...loads);
    const least = Math.min(...loads);
    const isUneven = most - least > imbalanceMax && most > imbalanceRatioMax * least;
    const tie = (i: number) => tieDraw(this.#seed, request.turn, i);
    if (isUneven) {
      return loads.map((load, i) => ({ terms: [{ name: "open", ms: load }, tie(i)] }));
    }
    const blocks = request.hashes.length / 2;
    const matches = candidates.map(({ workerId }) => memory.match(workerId, request));
    const longest = Math.max(...matches);
    if (blocks > 0 && longest / blocks > matchRatioMin) {
      return matches.map((match, i) => ({
        terms: [
          { name: "prefill_blocks", ms: blocks - match },
          { name: "open", ms: (loads[i] as number) / (most + 1) },
          tie(i),
        ],
      }));
    }
    return candidates.map(({ workerId }, i) => ({
      terms: [{ name: "tree_blocks", ms: memory.sizeOf(workerId) }, tie(i)],
    }));
  }

  /** Grows the worker's tree. */
  placed(request: PolicyRequest, { workerId }: Placed): void {
    this.#memory.sent(workerId, request);
  }

  /** Forgets the worker. */
  workerLeft(workerId: WorkerId): void {
    this.#memory.forget(workerId);
  }
}
