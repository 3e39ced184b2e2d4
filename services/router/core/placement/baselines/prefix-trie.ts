import type { WorkerId } from "../../../../shared/core/ids.ts";
import type { CandidateInput } from "../candidate.ts";
import type { Placed, PlacementPolicy, PolicyRequest, Score } from "../policy.ts";
import { tieDraw } from "./draw.ts";
import { PrefixMemory } from "./prefix-memory.ts";

/**
 * The longest prefix that the router itself has sent, whatever the load; among equals, and for what nobody has, any worker
 * at random. The rule of vLLM production-stack's `prefixaware` routing (v0.1: a trie of chunks of 128 characters), with
 * blocks of the mesh as chunks. That trie grows without end; here blocks are forgotten as in the approximate mode of
 * Dynamo's index (120 s after they were sent last) and beyond 200,000 a worker.
 */
export class PrefixTrie implements PlacementPolicy {
  readonly name = "prefix-trie";
  readonly #seed: number;
  readonly #memory = new PrefixMemory({ blocksMax: 200_000, ttlMs: 120_000 });

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** Prompt blocks that a worker is not believed to have. */
  score(candidates: readonly CandidateInput[], request: PolicyRequest): Score[] {
    const count = request.hashes.length / 2;
    return candidates.map(({ workerId }, i) => ({
      terms: [
        { name: "prefill_blocks", ms: count - this.#memory.match(workerId, request) },
        tieDraw(this.#seed, request.turn, i),
      ],
    }));
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
