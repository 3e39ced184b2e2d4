import type { Reporter, TestModule } from "vitest/node";
import { closingLine } from "./closing-line.ts";

/** Prints how many tests passed as the very last line of a run. */
export default class ClosingLineReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): void {
    const counts = { passed: 0, failed: 0, skipped: 0, pending: 0 };
    let broken = errors.length;
    for (const module of modules) {
      if (module.errors().length > 0) broken++;
      for (const test of module.children.allTests()) counts[test.result().state]++;
    }
    // A file that could not be loaded and an error outside tests are failures that no test counts.
    const failed = counts.failed + counts.pending + broken;
    process.once("exit", () => {
      process.stdout.write(`${closingLine({ ...counts, failed })}\n`);
    });
  }
}
