import type { StepModel } from "../../../shared/core/step-model.ts";
import type { MeasuredRequest, MeasuredRun } from "./measured-run.ts";
import { nelderMead } from "./nelder-mead.ts";
import { replayRun, type ReplayedRequest, type ReplayOptions } from "./replay-run.ts";

/** A fit and how well it did on the requests it saw. */
export interface StepFit {
  readonly model: StepModel;
  /** Mean absolute log error of the fitted times; about their mean relative error. */
  readonly error: number;
  readonly replays: number;
}

/** Settings of a fit. */
export interface FitOptions extends ReplayOptions {
  /** Whether a request's measured times may be used, by index in order of arrival. */
  readonly use: (index: number) => boolean;
  /** Right within an order of magnitude. */
  readonly start: StepModel;
  readonly replaysMax: number;
}

/**
 * Fits a step model to a run: replays it with trial coefficients and minimises the mean absolute log error of TTFT
 * and of the decode time over the requests that `use` accepts. The other requests still arrive in the replay, because
 * load is shared, but their measured times play no part. Coefficients stay positive (they are varied as logarithms).
 */
export function fitStepModel(run: MeasuredRun, options: FitOptions): StepFit {
  const { start } = options;
  const toModel = (x: readonly number[]): StepModel => {
    const scale = (k: number): number => Math.exp(x[k] as number);
    return {
      c0: start.c0 * scale(0),
      c1: start.c1 * scale(1),
      c2: start.c2 * scale(2),
      d0: start.d0 * scale(3),
      d1: start.d1 * scale(4),
      d2: start.d2 * scale(5),
    };
  };
  const minimum = nelderMead(
    (x) => {
      const replay = replayRun(run, toModel(x), options);
      return logError(run.requests, replay.requests, options.use);
    },
    {
      start: [0, 0, 0, 0, 0, 0],
      steps: [0.5, 0.3, 0.5, 0.3, 0.5, 0.5],
      evaluationsMax: options.replaysMax,
      tolerance: 1e-4,
    },
  );
  return { model: toModel(minimum.at), error: minimum.value, replays: minimum.evaluations };
}

/** Times of one request that are compared, ms: to the first token, and per further token. */
export interface RequestTimes {
  readonly ttftMs: number;
  /** NaN for one-token answers. */
  readonly tpotMs: number;
}

/** TTFT from arrival and TPOT = (last − first) ÷ (tokens − 1). */
export function requestTimes(
  times: Pick<ReplayedRequest, "arrivalMs" | "firstTokenMs" | "lastTokenMs">,
  outputTokens: number,
): RequestTimes {
  return {
    ttftMs: times.firstTokenMs - times.arrivalMs,
    tpotMs: outputTokens > 1 ? (times.lastTokenMs - times.firstTokenMs) / (outputTokens - 1) : NaN,
  };
}

function logError(
  measured: readonly MeasuredRequest[],
  replayed: readonly ReplayedRequest[],
  use: (index: number) => boolean,
): number {
  let sum = 0;
  let count = 0;
  for (const [index, request] of measured.entries()) {
    const replay = replayed[index];
    if (!use(index) || replay === undefined) continue;
    const want = requestTimes(request, request.outputTokens);
    const got = requestTimes(replay, request.outputTokens);
    sum += Math.abs(Math.log(got.ttftMs / want.ttftMs));
    count++;
    if (!Number.isNaN(want.tpotMs)) {
      sum += Math.abs(Math.log(got.tpotMs / want.tpotMs));
      count++;
    }
  }
  return count === 0 ? NaN : sum / count;
}

/** Quantile of unsorted values by linear interpolation; NaN when there are none. */
export function quantile(values: readonly number[], q: number): number {
  if (values.length === 0) return NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const at = q * (sorted.length - 1);
  const below = sorted[Math.floor(at)] as number;
  const above = sorted[Math.ceil(at)] as number;
  return below + (above - below) * (at - Math.floor(at));
}
