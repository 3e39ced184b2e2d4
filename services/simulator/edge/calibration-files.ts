import { readFileSync } from "node:fs";
import {
  measuredRunSources,
  parseMeasuredRun,
  type MeasuredRun,
} from "../core/calibration/measured-run.ts";

/** Reads the measured runs of the calibration folder. */
export function readMeasuredRuns(): MeasuredRun[] {
  return measuredRunSources.map((source) => {
    const path = new URL(`../calibration/${source.file}`, import.meta.url);
    return parseMeasuredRun(source, readFileSync(path, "utf8"));
  });
}
