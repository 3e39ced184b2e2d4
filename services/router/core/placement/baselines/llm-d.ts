import type { WorkerId } from "../../../../shared/core/ids.ts";
import type { CandidateInput } from "../candidate.ts";
import type { Placed, PlacementPolicy, PolicyRequest, Score } from "../policy.ts";
import { tieDraw } from "./draw.ts";
import { PrefixMemory } from "./prefix-memory.ts";

/** Weights of the profile that llm-d's router uses when nothing is configured. */
const weights = { queue: 2, kvUsage: 2, prefix: 3 } as const;
/** Tokens of a prompt that are compared: 256 blocks of 16. */
const tokensMax = 256 * 16;
/** Blocks of 16 tokens remembered of a worker whose capacity is not known. */
const capacityTokensDefault = 31_250 * 16;

/**
 * The default profile of llm-d's router (llm-d-inference-scheduler with the Gateway API inference extension, 2026):
 * queue-scorer 2, kv-cache-utilization-scorer 2, prefix-cache-scorer 3, max-score-picker, which takes one of the best at
 * random. Queue and use of the cache are what the engine's last report says, however old: the router scrapes them and does
 * not count what it has sent since. The prefix scorer remembers what was sent where, as many blocks as the engine
 * announces to hold (`autoTune`), and compares the first 4,096 tokens of a prompt.
 */
export class LlmD implements PlacementPolicy {
  readonly name = "llm-d";
  readonly #seed: number;
  #memory: PrefixMemory | undefined;

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** What is missing to the highest score. */
  score(candidates: readonly CandidateInput[], request: PolicyRequest): Score[] {
    this.#memory ??= createMemory(candidates, request);
    const memory = this.#memory;
    const prompt = compared(request);
    const blocks = prompt.hashes.length / 2;
    let least = Infinity;
    let most = 0;
    for (const { reportedWaiting } of candidates) {
      least = Math.min(least, reportedWaiting);
      most = Math.max(most, reportedWaiting);
    }
    const best = weights.queue + weights.kvUsage + weights.prefix;
    return candidates.map((candidate, i) => {
      const { workerId, reportedWaiting, reportedKvUsageRatio } = candidate;
      const queue = most === least ? 1 : (most - reportedWaiting) / (most - least);
      const prefix = blocks === 0 ? 0 : memory.match(workerId, prompt) / blocks;
      const score =
        weights.queue * queue +
        weights.kvUsage * Math.min(1, Math.max(0, 1 - reportedKvUsageRatio)) +
        weights.prefix * prefix;
      return {
        terms: [{ name: "score", ms: best - score }, tieDraw(this.#seed, request.turn, i)],
      };
    });
  }

  /** Remembers the prompt. */
  placed(request: PolicyRequest, { workerId }: Placed): void {
    this.#memory?.sent(workerId, compared(request));
  }

  /** Forgets the worker. */
  workerLeft(workerId: WorkerId): void {
    this.#memory?.forget(workerId);
  }
}

function compared({
  hashes,
  blockSizeTokens,
  now,
}: PolicyRequest): Pick<PolicyRequest, "hashes" | "now"> {
  return { hashes: hashes.subarray(0, 2 * Math.floor(tokensMax / blockSizeTokens)), now };
}

/** Sized by the largest engine that is there at the first request. */
function createMemory(
  candidates: readonly CandidateInput[],
  { blockSizeTokens }: PolicyRequest,
): PrefixMemory {
  const announced = Math.max(0, ...candidates.map((c) => c.capacityTokens));
  const capacityTokens = announced > 0 ? announced : capacityTokensDefault;
  return new PrefixMemory({
    blocksMax: Math.ceil(capacityTokens / blockSizeTokens),
    ttlMs: Infinity,
  });
}
