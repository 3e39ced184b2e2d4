import { SeededRandom } from "../../../shared/core/random.ts";
import { decodeStepMs, prefillMs, type StepModel } from "../../../shared/core/step-model.ts";
import type { LatencyTargets } from "../replay/goodput.ts";

/** Requests of one shape, none of which shares a prefix with another. */
export interface DisaggLoad {
  readonly name: string;
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly targets: LatencyTargets;
}

/** The fleet that serves them. */
export interface DisaggFleet {
  readonly engines: number;
  /** Of them, how many compute prompts when every request is a pair. */
  readonly prefillEngines: number;
  readonly stepModel: StepModel;
  /** Sequences that an engine runs at once. */
  readonly runningMax: number;
  readonly kvTokens: number;
  /** Time that a prompt's KV takes over a link that is free, ms for one token. */
  readonly transferMsPerToken: number;
}

/** Request rates up to which each form keeps its targets, requests/s. */
export interface Knees {
  readonly aggregated: number;
  readonly disaggregated: number;
}

/**
 * Long prompts with short answers under a tight time per token, where prompts that are computed among answers break it, and
 * short prompts with long answers under a loose one, where engines that only compute prompts are missing for answers.
 */
export const disaggLoads: readonly DisaggLoad[] = [
  {
    name: "12,000 in, 343 out",
    inputTokens: 12_000,
    outputTokens: 343,
    targets: { ttftMs: 3_000, itlMs: 15 },
  },
  {
    name: "1,024 in, 1,024 out",
    inputTokens: 1_024,
    outputTokens: 1_024,
    targets: { ttftMs: 1_000, itlMs: 100 },
  },
];

/** Share of an engine's places that may be taken in the mean: arrivals are random, and a full engine makes them wait. */
const placesShare = 0.85;
/** About one wait in twenty is longer than so many mean waits. */
const waitsMax = 3;

/**
 * Closed form of what either form can carry (L answer tokens, P prompt time, S the time-per-token target, D(B) a decode step of
 * B sequences, c their mean context):
 *
 * - whole: an answer pays for the prompts computed beside it, so a step takes D(B) + B·P′/L; B is the most for which that is
 *   at most S, and at most what memory and places allow; an engine then completes B / (L·step).
 * - pairs: B is the most with D(B) ≤ S; a decode engine completes B / (L·D(B)). A prefill engine completes ρ/P, where ρ is the
 *   load at which waits, M/D/1 of mean ρ·P / 2(1−ρ), leave nineteen of twenty first tokens within their target.
 *
 * The smaller of both sides counts.
 */
export function kneesOf(load: DisaggLoad, fleet: DisaggFleet): Knees {
  const { inputTokens, outputTokens, targets } = load;
  const { stepModel: m, engines, prefillEngines, runningMax, kvTokens } = fleet;
  const context = inputTokens + outputTokens / 2;
  const places = placesShare * Math.min(runningMax, kvTokens / context);
  const promptMs = prefillMs(m, inputTokens, 0);
  const perSequence = m.d1 + m.d2 * context;
  const beside = (promptMs - m.c0) / outputTokens;
  const slack = targets.itlMs - m.d0;

  const whole = Math.max(0, Math.min(places, slack / (perSequence + beside)));
  const wholeStep = decodeStepMs(m, whole, whole * context) + whole * beside;
  const aggregated = whole === 0 ? 0 : (engines * whole * 1_000) / (outputTokens * wholeStep);

  const split = Math.max(0, Math.min(places, slack / perSequence));
  const decoding =
    split === 0
      ? 0
      : ((engines - prefillEngines) * split * 1_000) /
        (outputTokens * decodeStepMs(m, split, split * context));
  const waitMs = (targets.ttftMs - promptMs - inputTokens * fleet.transferMsPerToken) / waitsMax;
  const busy = waitMs <= 0 ? 0 : (2 * waitMs) / (promptMs + 2 * waitMs);
  const prefilling = (prefillEngines * busy * 1_000) / promptMs;
  return { aggregated, disaggregated: Math.min(decoding, prefilling) };
}

/** The rate at which both forms are compared: the knee of the better one, so that it is near its limit and the other beyond. */
export function comparedRate(knees: Knees): number {
  return Math.max(knees.aggregated, knees.disaggregated);
}

/**
 * A load as a workload file (JSON lines with `timestamp`, `input_length`, `output_length`): Poisson arrivals at `rate` for a little
 * more than `durationMs`; the same seed gives the same file.
 */
export function workloadLines(
  load: DisaggLoad,
  of: { readonly rate: number; readonly durationMs: number; readonly seed: number },
): string {
  const random = new SeededRandom(of.seed).fork(load.name);
  const lines: string[] = [];
  let atMs = 0;
  while (atMs <= of.durationMs) {
    atMs += (-Math.log(1 - random.next()) * 1_000) / of.rate;
    lines.push(
      JSON.stringify({
        timestamp: Math.round(atMs * 1_000) / 1_000,
        input_length: load.inputTokens,
        output_length: load.outputTokens,
        hash_ids: [],
      }),
    );
  }
  return `${lines.join("\n")}\n`;
}
