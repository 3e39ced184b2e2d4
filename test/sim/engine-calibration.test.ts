import { describe, expect, test } from "vitest";
import { calibrateRun } from "../../services/simulator/core/calibration/calibrate-run.ts";
import { readMeasuredRuns } from "../../services/simulator/edge/calibration-files.ts";

/** The p50 of TTFT and TPOT on requests that the fit did not see may be this far off. */
const errorMax = 0.1;

describe("engine calibration", () => {
  for (const run of readMeasuredRuns()) {
    test(`fitted on the first half of ${run.name}, the core predicts the second half`, () => {
      const calibration = calibrateRun(run, { replaysMax: 70 });
      expect(calibration.heldOutRequests).toBe(150);
      const medians = calibration.rows.filter((row) => row.q === 0.5);
      expect(medians).toHaveLength(2);
      for (const row of medians) {
        expect(
          Math.abs(row.error),
          `${row.quantity}: measured ${row.measuredMs.toFixed(1)} ms, replayed ${row.replayedMs.toFixed(1)} ms`,
        ).toBeLessThanOrEqual(errorMax);
      }
    }, 120_000);
  }
});
