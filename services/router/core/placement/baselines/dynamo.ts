import { monoMs, type WorkerId } from "../../../../shared/core/ids.ts";
import type { CandidateInput } from "../candidate.ts";
import type { Placed, PlacementPolicy, PolicyRequest, Score } from "../policy.ts";
import { draw, tieDraw } from "./draw.ts";
import { LiveBlocks } from "./live-blocks.ts";

/** Settings of Dynamo's selector; its defaults are 1, 1 and 0. */
export interface DynamoOptions {
  /** What a cached block is worth, in blocks to compute. */
  readonly overlapCredit: number;
  /** Weight of blocks to compute beside blocks that are live; the older name is overlap score weight. */
  readonly prefillLoadScale: number;
  /** 0 takes the cheapest; above it a worker is drawn, the more evenly the higher. */
  readonly temperature: number;
}

function hasPartialBlock({ promptTokens, hashes, blockSizeTokens }: PolicyRequest): boolean {
  return promptTokens > (hashes.length / 2) * blockSizeTokens;
}

/**
 * The cost of NVIDIA Dynamo's KV router (lib/kv-router, 1.5.0-pre, selector `default`): blocks that the worker still has to
 * compute with this prompt, less those that it has cached, plus blocks that would be live there with it. Both counts are the
 * router's own, kept from placements, first tokens and ends. Cached blocks are those of our KV index, as exact as
 * Dynamo's with KV events. Of lower tiers, preferred taints, decay and a request weight, all off by default, there is nothing.
 * Equal costs are settled at random, as there.
 */
export class Dynamo implements PlacementPolicy {
  readonly name = "dynamo";
  readonly #seed: number;
  readonly #options: DynamoOptions;
  readonly #live = new LiveBlocks();

  constructor(
    seed: number,
    options: DynamoOptions = { overlapCredit: 1, prefillLoadScale: 1, temperature: 0 },
  ) {
    this.#seed = seed;
    this.#options = options;
  }

  /** Blocks to compute and live blocks. */
  score(candidates: readonly CandidateInput[], request: PolicyRequest): Score[] {
    const { overlapCredit, prefillLoadScale, temperature } = this.#options;
    const { promptTokens, hashes, blockSizeTokens, turn, now } = request;
    const partial = hasPartialBlock(request);
    const costs = candidates.map(({ workerId, matchedBlocks }) => {
      const waiting = this.#live.prefillTokens(workerId, now);
      const raw = (waiting + promptTokens) / blockSizeTokens;
      const prefill = prefillLoadScale * Math.max(0, raw - overlapCredit * matchedBlocks);
      return { prefill, decode: this.#live.projected(workerId, hashes, partial) };
    });
    const drawn =
      temperature > 0
        ? sample(
            costs.map((c) => c.prefill + c.decode),
            temperature,
            draw(this.#seed, turn, -1),
          )
        : -1;
    const most = costs.reduce((max, c) => Math.max(max, c.prefill + c.decode), 0);
    return costs.map(({ prefill, decode }, i) => ({
      terms: [
        { name: "prefill_blocks", ms: prefill },
        { name: "decode_blocks", ms: decode },
        tieDraw(this.#seed, turn, i),
        ...(drawn >= 0 ? [{ name: "choice" as const, ms: i === drawn ? 0 : most + 1 }] : []),
      ],
    }));
  }

  /** Adds the prompt to what is live. */
  placed(request: PolicyRequest, placed: Placed): void {
    const { promptTokens, hashes, blockSizeTokens, now } = request;
    const cachedTokens = Math.min(promptTokens, placed.matchedBlocks * blockSizeTokens);
    this.#live.add({
      decisionId: placed.decisionId,
      workerId: placed.workerId,
      hashes,
      hasPartialBlock: hasPartialBlock(request),
      uncachedTokens: promptTokens - cachedTokens,
      placedAt: now,
      firstTokenAt: monoMs(now + placed.predictedTtftMs),
    });
  }

  /** The prompt has been computed. */
  firstToken(decisionId: string): void {
    this.#live.firstToken(decisionId);
  }

  /** Its blocks are live no more. */
  closed(decisionId: string): void {
    this.#live.remove(decisionId);
  }

  /** Forgets the worker. */
  workerLeft(workerId: WorkerId): void {
    this.#live.forget(workerId);
  }
}

/** Index drawn with a probability that falls by e for each `temperature` of the spread of costs. */
export function sample(costs: readonly number[], temperature: number, at: number): number {
  const least = Math.min(...costs);
  const spread = Math.max(...costs) - least;
  const weights = costs.map((cost) =>
    spread === 0 ? 1 : Math.exp(-(cost - least) / (spread * temperature)),
  );
  let left = at * weights.reduce((sum, weight) => sum + weight, 0);
  for (const [i, weight] of weights.entries()) {
    left -= weight;
    if (left < 0) return i;
  }
  return costs.length - 1;
}
