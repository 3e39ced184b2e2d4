import type { CandidateInput } from "../candidate.ts";
import type { PlacementPolicy, PolicyRequest, Score } from "../policy.ts";
import { draw } from "./draw.ts";

/** Requests that run on a worker or wait there, as far as the router knows: its own count and what the engine has beyond. */
export function openRequests(candidate: CandidateInput): number {
  return candidate.load.openRequests + candidate.foreignRequests;
}

/** Every worker in turn, by id. */
export const roundRobin: PlacementPolicy = {
  name: "round-robin",
  score: (candidates, { turn }) => {
    const count = candidates.length;
    return candidates.map((_, position) => ({
      terms: [{ name: "turn", ms: (position - (turn % count) + count) % count }],
    }));
  },
};

/** The fewest open requests. */
export const leastRequests: PlacementPolicy = {
  name: "least-requests",
  score: (candidates) =>
    candidates.map((candidate) => ({ terms: [{ name: "open", ms: openRequests(candidate) }] })),
};

/** Any worker with equal probability. */
export class RandomChoice implements PlacementPolicy {
  readonly name = "random";
  readonly #seed: number;

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** The least of as many draws as there are candidates. */
  score(candidates: readonly CandidateInput[], { turn }: PolicyRequest): Score[] {
    return candidates.map((_, i) => ({
      terms: [{ name: "draw", ms: draw(this.#seed, turn, i) }],
    }));
  }
}

/**
 * Two workers at random, of them the one with fewer open requests, of equal ones the first drawn (Mitzenmacher, "The Power
 * of Two Choices in Randomized Load Balancing", 2001; what Envoy's least-request balancer and AIBrix's `power-of-two` do).
 * The workers not drawn are fallbacks only, by open requests.
 */
export class PowerOfTwo implements PlacementPolicy {
  readonly name = "power-of-two";
  readonly #seed: number;

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** Workers not drawn cost more than any that is. */
  score(candidates: readonly CandidateInput[], { turn }: PolicyRequest): Score[] {
    const count = candidates.length;
    const first = Math.floor(draw(this.#seed, turn, 0) * count);
    const other = Math.floor(draw(this.#seed, turn, 1) * (count - 1));
    const second = other < first ? other : other + 1;
    const most = candidates.reduce((max, c) => Math.max(max, openRequests(c)), 0);
    return candidates.map((candidate, i) => ({
      terms: [
        { name: "open", ms: openRequests(candidate) },
        { name: "choice", ms: i === first ? 0 : i === second ? 0.5 : most + 1 },
      ],
    }));
  }
}
