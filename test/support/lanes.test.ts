import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { addCounts, closingLine, readClosingLine } from "./closing-line.ts";
import { runLanes, type Lane, type Step, type StepEnd } from "./lanes.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-lanes-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** A step that runs a shell script. */
function shell(name: string, script: string, over: Partial<Step> = {}): Step {
  return { name, command: ["sh", "-c", script], timeMsMax: 20_000, ...over };
}

async function run(
  lanes: readonly Lane[],
  signal = new AbortController().signal,
): Promise<{ readonly ends: readonly StepEnd[]; readonly text: string }> {
  let text = "";
  const write = (more: string): void => {
    text += more;
  };
  const ends = await runLanes(lanes, { cwd: folder, env: process.env, write, signal });
  return { ends, text };
}

test("lanes run beside each other, the steps of one after the other", async () => {
  // Each waits for a file of the other: neither would end if it were alone.
  const wait = (file: string): string => `until [ -e ${file} ]; do sleep 0.01; done`;
  const { ends } = await run([
    { nice: 0, steps: [shell("a", `touch a; ${wait("b")}`), shell("c", "[ -e b ] && touch c")] },
    { nice: 3, steps: [shell("b", `touch b; ${wait("a")}`)] },
  ]);
  expect(ends.map(({ name, failure }) => [name, failure])).toEqual([
    ["a", undefined],
    ["c", undefined],
    ["b", undefined],
  ]);
});

test("the first lane is shown as it goes, the others after it, what failed last", async () => {
  const { ends, text } = await run([
    {
      nice: 0,
      steps: [shell("live", "echo one; until [ -e done ]; do sleep 0.01; done; echo two")],
    },
    {
      nice: 0,
      steps: [
        shell("bad", "echo wrong >&2; exit 3"),
        shell("good", "echo right"),
        shell("last", "touch done"),
      ],
    },
  ]);
  expect(text).toBe("one\ntwo\nright\nwrong\n\nbad failed: it ended with code 3\n");
  expect(ends.map(({ failure }) => failure)).toEqual([
    undefined,
    "it ended with code 3",
    undefined,
    undefined,
  ]);
});

test("a lane has its priority", async () => {
  await run([
    { nice: 7, steps: [shell("low", "nice > low")] },
    { nice: 0, steps: [shell("same", "nice > same")] },
  ]);
  const [low, same] = ["low", "same"].map((name) => readFileSync(join(folder, name), "utf8"));
  expect(Number(low)).toBe(Math.min(19, Number(same) + 7));
});

test("counts come from closing lines, which are not shown", async () => {
  const line = "tests: 5 passed, 0 failed, 2 skipped";
  const { ends, text } = await run([
    { nice: 0, steps: [shell("counts", `echo hello; echo '${line}'`, { countsTests: true })] },
  ]);
  expect(ends[0]?.counts).toEqual({ passed: 5, failed: 0, skipped: 2 });
  expect(text).toBe("hello\n");
});

test.each([
  {
    what: "fails without saying so",
    script: `echo '${closingLine(onlyPassed(3))}'; exit 1`,
    passed: 3,
  },
  { what: "ends before it has counted", script: "exit 1", passed: 0 },
  { what: "passes without having counted", script: "true", passed: 0 },
])("a run of tests that $what counts as a failed one", async ({ script, passed }) => {
  const { ends } = await run([
    { nice: 0, steps: [shell("counts", script, { countsTests: true })] },
  ]);
  expect(ends[0]?.failure).toBeDefined();
  expect(ends[0]?.counts).toEqual({ passed, failed: 1, skipped: 0 });
});

test("failures that are counted are not counted again", async () => {
  const line = closingLine({ passed: 1, failed: 4, skipped: 0 });
  const { ends } = await run([
    { nice: 0, steps: [shell("counts", `echo '${line}'; exit 1`, { countsTests: true })] },
  ]);
  expect(addCounts(ends.flatMap(({ counts }) => counts ?? []))).toEqual(readClosingLine(line));
});

test("a step that takes too long is ended and says so; the next one runs", async () => {
  const { ends } = await run([
    {
      nice: 0,
      steps: [shell("slow", "exec sleep 30", { timeMsMax: 200 }), shell("next", "touch next")],
    },
  ]);
  expect(ends[0]?.failure).toBe("it took longer than 0.2 s");
  expect(ends[0]?.ms).toBeLessThan(15_000);
  expect(ends[1]?.failure).toBeUndefined();
});

test("a command that does not exist is named", async () => {
  const command = ["no-such-command-here"] as const;
  const { ends } = await run([
    { nice: 0, steps: [{ name: "missing", command, timeMsMax: 5_000 }] },
    { nice: 5, steps: [{ name: "missing, by nice", command, timeMsMax: 5_000 }] },
  ]);
  expect(ends[0]?.failure).toContain("no-such-command-here could not be run");
  expect(ends[1]?.failure).toBe("it ended with code 127");
});

test("when it is told to end, what runs ends and what has not begun is left out", async () => {
  const ending = new AbortController();
  const steps = [shell("runs", "touch begun; exec sleep 30"), shell("never", "touch never")];
  const running = run([{ nice: 0, steps }], ending.signal);
  await expect
    .poll(() => readFileSync(join(folder, "begun"), "utf8"), { timeout: 10_000 })
    .toBe("");
  ending.abort();
  const { ends } = await running;
  expect(ends.map(({ name, failure }) => [name, failure])).toEqual([
    ["runs", "it was told to end"],
  ]);
});

/** Counts of a run in which so many tests passed. */
function onlyPassed(passed: number) {
  return { passed, failed: 0, skipped: 0 };
}
