/** What became of the tests of a run. */
export interface TestCounts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

const pattern = /^tests: (\d+) passed, (\d+) failed, (\d+) skipped$/;

/** The line that ends every run of tests, without a line break. */
export function closingLine({ passed, failed, skipped }: TestCounts): string {
  return `tests: ${passed} passed, ${failed} failed, ${skipped} skipped`;
}

/** Counts that such a line tells; `undefined` for any other line. */
export function readClosingLine(line: string): TestCounts | undefined {
  const [, passed, failed, skipped] = pattern.exec(line) ?? [];
  if (passed === undefined || failed === undefined || skipped === undefined) return undefined;
  return { passed: Number(passed), failed: Number(failed), skipped: Number(skipped) };
}

/** Counts of several runs together. */
export function addCounts(all: readonly TestCounts[]): TestCounts {
  const sum = (of: (one: TestCounts) => number): number => all.reduce((n, one) => n + of(one), 0);
  return {
    passed: sum((one) => one.passed),
    failed: sum((one) => one.failed),
    skipped: sum((one) => one.skipped),
  };
}
