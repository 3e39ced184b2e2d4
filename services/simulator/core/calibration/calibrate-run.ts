import type { StepModel } from "../../../shared/core/step-model.ts";
import { fitStepModel, quantile, requestTimes, type StepFit } from "./fit-step-model.ts";
import type { MeasuredRun } from "./measured-run.ts";
import { replayRun } from "./replay-run.ts";

/** One quantile of one quantity, measured and replayed, ms. */
export interface QuantileRow {
  readonly quantity: "ttft" | "tpot";
  readonly q: number;
  readonly measuredMs: number;
  readonly replayedMs: number;
  /** replayed ÷ measured − 1. */
  readonly error: number;
}

/** A fit on one part of a run, checked on the rest. */
export interface Calibration {
  readonly run: string;
  readonly fit: StepFit;
  /** How many requests the fit saw, and how many it was checked on. */
  readonly fittedRequests: number;
  readonly heldOutRequests: number;
  readonly preemptions: number;
  /** Over the requests that the fit did not see. */
  readonly rows: readonly QuantileRow[];
}

/** Where fits start: the order of magnitude of a recent GPU with a model of 8B to 32B. */
const fitStart: StepModel = { c0: 15, c1: 0.12, c2: 1e-6, d0: 25, d1: 0.08, d2: 1e-4 };

/** Quantiles that a calibration reports. */
export const calibrationQuantiles = [0.1, 0.25, 0.5, 0.75, 0.9] as const;

/**
 * Fits on the first half of a run by arrival and checks on the second half: the fit never sees a time of a request
 * that it is checked on, and has to carry over from a filling to a saturated and then draining engine.
 */
export function calibrateRun(run: MeasuredRun, options: { replaysMax: number }): Calibration {
  const half = Math.floor(run.requests.length / 2);
  const fit = fitStepModel(run, {
    use: (index) => index < half,
    start: fitStart,
    replaysMax: options.replaysMax,
  });
  const replay = replayRun(run, fit.model);
  const measured = { ttft: [] as number[], tpot: [] as number[] };
  const replayed = { ttft: [] as number[], tpot: [] as number[] };
  for (const [index, request] of run.requests.entries()) {
    const got = replay.requests[index];
    if (index < half || got === undefined) continue;
    const want = requestTimes(request, request.outputTokens);
    const have = requestTimes(got, request.outputTokens);
    measured.ttft.push(want.ttftMs);
    replayed.ttft.push(have.ttftMs);
    if (Number.isNaN(want.tpotMs)) continue;
    measured.tpot.push(want.tpotMs);
    replayed.tpot.push(have.tpotMs);
  }
  const rows: QuantileRow[] = [];
  for (const quantity of ["ttft", "tpot"] as const) {
    for (const q of calibrationQuantiles) {
      const measuredMs = quantile(measured[quantity], q);
      const replayedMs = quantile(replayed[quantity], q);
      rows.push({ quantity, q, measuredMs, replayedMs, error: replayedMs / measuredMs - 1 });
    }
  }
  return {
    run: run.name,
    fit,
    fittedRequests: half,
    heldOutRequests: run.requests.length - half,
    preemptions: replay.preemptions,
    rows,
  };
}

/** The calibration as a text table. */
export function formatCalibration(calibration: Calibration): string {
  const { fit, rows } = calibration;
  const coefficients = Object.entries(fit.model)
    .map(([name, value]) => `${name} ${(value as number).toPrecision(3)}`)
    .join("  ");
  const lines = [
    `${calibration.run}: fitted on the first ${String(calibration.fittedRequests)} requests ` +
      `(${String(fit.replays)} replays, mean error ${(fit.error * 100).toFixed(1)} %), ` +
      `checked on the last ${String(calibration.heldOutRequests)}, ${String(calibration.preemptions)} preemptions`,
    `  ${coefficients}`,
    "  quantity  quantile   measured ms   replayed ms    error",
  ];
  for (const row of rows) {
    lines.push(
      `  ${row.quantity.toUpperCase()}      p${String(row.q * 100).padEnd(8)} ${row.measuredMs.toFixed(1).padStart(12)}  ` +
        `${row.replayedMs.toFixed(1).padStart(12)}  ${(row.error * 100).toFixed(1).padStart(6)} %`,
    );
  }
  return lines.join("\n");
}
