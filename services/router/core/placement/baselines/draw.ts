import type { CostTerm } from "../candidate.ts";

function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * A number in [0, 1) that depends on its arguments alone (MurmurHash3's finaliser, chained): a draw that a dry run may
 * ask for as well without taking it from anybody.
 */
export function draw(seed: number, turn: number, index: number): number {
  return mix(mix(mix(seed ^ 0x9e3779b9) + turn) + Math.imul(index + 1, 0x85ebca77)) / 2 ** 32;
}

/** Seed that a name stands for (FNV-1a). */
export function seedOf(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** Small enough to decide nothing but ties, large enough not to count as one itself. */
const tieShare = 1e-4;

/** Term by which candidates of equal cost are taken at random, as peers do that shuffle before they choose. */
export function tieDraw(seed: number, turn: number, index: number): CostTerm {
  return { name: "draw", ms: tieShare * draw(seed, turn, index) };
}
