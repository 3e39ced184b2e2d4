import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatRatio } from "../../services/cli/core/text-table.ts";
import { readSelfTimes } from "./cpu-profile.ts";
import { shown } from "./figures.ts";

/** A profile of a router process, from the options that start it to the lines that are printed. */
export class RouterProfile {
  readonly #folder = mkdtempSync(join(tmpdir(), "kvmesh-profile-"));

  /** Options of Node that write the profile when the process ends. */
  get nodeArgs(): string[] {
    return ["--cpu-prof", "--cpu-prof-dir", this.#folder, "--cpu-prof-interval", "500"];
  }

  /** Prints where the time between two moments went, µs of the monotonic clock. Once the process has ended. */
  print(options: { readonly fromUs: number; readonly toUs: number; readonly top: number }): void {
    const { functions, groups } = readSelfTimes(this.#folder, options);
    for (const [title, times] of [
      ["function", functions],
      ["package or folder", groups],
    ] as const) {
      console.log(`\nself time of the router's main thread by ${title}`);
      for (const { place, ms, share } of times.slice(0, options.top)) {
        console.log(`${formatRatio(share).padStart(8)} ${shown(ms).padStart(8)} ms  ${place}`);
      }
    }
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
