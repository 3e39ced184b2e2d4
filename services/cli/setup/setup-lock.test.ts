import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "kvmesh-setup-"));
});
afterEach(() => {
  rmSync(dir, { recursive: true, force: true });
});

/** Runs `work` (JavaScript text) under the lock in a process of its own; resolves to its output and exit code. */
function underLock(work: string, waitMsMax = 10_000): Promise<{ output: string; code: number }> {
  const lock = JSON.stringify(join(import.meta.dirname, "setup-lock.mjs"));
  const path = JSON.stringify(join(dir, "lock"));
  const source = `
    import { withLock } from ${lock};
    import { appendFileSync } from "node:fs";
    const note = (text) => appendFileSync(${JSON.stringify(join(dir, "log"))}, text + "\\n");
    await withLock(
      { path: ${path}, waitMsMax: ${waitMsMax.toString()}, onWait: () => console.log("waiting") },
      async () => { ${work} },
    ).catch((error) => { console.log(error.message); process.exitCode = 1; });`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", source]);
  let output = "";
  child.stdout.on("data", (chunk) => (output += String(chunk)));
  child.stderr.on("data", (chunk) => (output += String(chunk)));
  return new Promise((resolve) => {
    child.on("close", (code) => resolve({ output, code: code ?? -1 }));
  });
}

const slow = "note('in'); await new Promise((go) => setTimeout(go, 150)); note('out');";

test("four set-ups at once work one after the other", async () => {
  const results = await Promise.all([1, 2, 3, 4].map(() => underLock(slow)));
  expect(results.map(({ code }) => code)).toEqual([0, 0, 0, 0]);
  const log = readFileSync(join(dir, "log"), "utf8").trim().split("\n");
  expect(log).toEqual(Array.from({ length: 4 }, () => ["in", "out"]).flat());
  expect(existsSync(join(dir, "lock"))).toBe(false);
});

test("several set-ups that find the lock of a dead process still work one after the other", async () => {
  writeFileSync(join(dir, "lock"), JSON.stringify({ pid: 2 ** 22 + 1, host: hostname() }));
  const results = await Promise.all([1, 2, 3].map(() => underLock(slow)));
  expect(results.map(({ code }) => code)).toEqual([0, 0, 0]);
  const log = readFileSync(join(dir, "log"), "utf8").trim().split("\n");
  expect(log).toEqual(Array.from({ length: 3 }, () => ["in", "out"]).flat());
});

test("a lock of another machine counts until it is no longer renewed", async () => {
  const path = join(dir, "lock");
  writeFileSync(path, JSON.stringify({ pid: 1, host: "elsewhere" }));
  expect(await underLock("note('in')", 500)).toMatchObject({ code: 1 });
  const old = new Date(Date.now() - 60_000);
  utimesSync(path, old, old);
  expect(await underLock("note('in')", 500)).toMatchObject({ code: 0, output: "" });
});

test("the lock goes when the work fails", async () => {
  expect(await underLock("throw new Error('broken')")).toMatchObject({
    code: 1,
    output: "broken\n",
  });
  expect(existsSync(join(dir, "lock"))).toBe(false);
});
