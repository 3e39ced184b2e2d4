// All checks and tests, as `npm test` runs them: the checks beside the tests, since tests of a real mesh wait more than they
// work.
//
//   node test/run.ts             everything
//   node test/run.ts --checks    format, import rules, types, protos and lint alone
//   node test/run.ts WORD…       the checks, and `vitest run WORD…` in place of all tests
import { readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { addCounts, closingLine } from "./support/closing-line.ts";
import { runLanes, type Lane, type Step, type StepEnd } from "./support/lanes.ts";

const root = join(import.meta.dirname, "..");
const checkMsMax = 15 * 60_000;
const testsMsMax = 45 * 60_000;

/** A script of package.json, run without npm in between. */
function check(name: string, script: string): Step {
  const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    readonly scripts: Readonly<Record<string, string>>;
  };
  const text = scripts[script];
  if (text === undefined || /[;&|]/.test(text)) {
    throw new Error(`package.json needs a script "${script}" of one command`);
  }
  return { name, command: ["sh", "-c", `exec ${text}`], timeMsMax: checkMsMax };
}

function tests(name: string, ...words: readonly string[]): Step {
  return { name, command: ["vitest", "run", ...words], timeMsMax: testsMsMax, countsTests: true };
}

/** What is quick comes first. */
function checks(nice: number): Lane {
  return {
    nice,
    steps: [
      check("protos", "lint:protos"),
      check("imports", "lint:imports"),
      check("types", "types"),
      check("format", "format:check"),
      check("lint", "lint:code"),
    ],
  };
}

/**
 * A mesh gets the machine for itself but for what the checks take of its idle time, so that its times stay what they are on a
 * quiet machine.
 */
function lanesFor(words: readonly string[]): readonly Lane[] {
  if (words[0] === "--checks") return [checks(0)];
  if (words.length > 0) return [{ nice: 0, steps: [tests("tests", ...words)] }, checks(10)];
  return [
    {
      nice: 0,
      steps: [
        tests("tests of parts", "--project", "!e2e"),
        tests("end-to-end tests", "--project", "e2e"),
      ],
    },
    checks(12),
  ];
}

/** What is said at the end; its last line is what the tests came to. */
function summary(ends: readonly StepEnd[]): string {
  const failed = ends.filter(({ failure }) => failure !== undefined);
  const counts = ends.flatMap((end) => end.counts ?? []);
  const lines = [
    "",
    ends.map(({ name, ms }) => `${name} ${(ms / 1_000).toFixed(0)} s`).join(", "),
    ...failed.map(({ name, failure }) => `FAILED: ${name}: ${failure ?? ""}`),
    ...(counts.length === 0 ? [] : [closingLine(addCounts(counts))]),
  ];
  return `${lines.join("\n")}\n`;
}

const ending = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => {
    ending.abort();
  });
}

const ends = await runLanes(lanesFor(process.argv.slice(2)), {
  cwd: root,
  env: {
    ...process.env,
    PATH: [join(root, "node_modules/.bin"), process.env["PATH"] ?? ""].join(delimiter),
    ...(process.stdout.isTTY ? { FORCE_COLOR: "1" } : {}),
  },
  write: (text) => void process.stdout.write(text),
  signal: ending.signal,
});
process.stdout.write(summary(ends));
process.exitCode =
  ending.signal.aborted || ends.some(({ failure }) => failure !== undefined) ? 1 : 0;
