import type { PlacementPolicy, PolicyRequest } from "../policy.ts";
import { draw, seedOf } from "./draw.ts";

/**
 * A request without a session is known by so many tokens at the beginning of its prompt: about a system prompt, which many
 * share, and a first message, which they do not.
 */
const firstTokens = 1_024;

function keyOf({ session, hashes, blockSizeTokens }: PolicyRequest): number {
  if (session !== "") return seedOf(session);
  const blocks = Math.min(hashes.length / 2, Math.max(1, Math.ceil(firstTokens / blockSizeTokens)));
  return blocks === 0 ? 0 : (hashes[2 * (blocks - 1)] as number);
}

/**
 * Consistent hashing: one conversation stays on one worker, and a worker that leaves moves its own conversations alone
 * (highest random weight, Thaler and Ravishankar 1998, which needs no ring). What production-stack's `session` routing and
 * consistent-hash balancers of proxies do. A request without a session is placed by the hash of its first 1,024 tokens;
 * those whose prompts were not read all go to one worker. Blind to load.
 */
export const sessionHash: PlacementPolicy = {
  name: "session-hash",
  score: (candidates, request) => {
    const key = keyOf(request);
    return candidates.map(({ workerId }) => ({
      terms: [{ name: "draw", ms: draw(key, seedOf(workerId), 0) }],
    }));
  },
};
