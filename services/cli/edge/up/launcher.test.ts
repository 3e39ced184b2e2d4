import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { isAlive, ManagedProcess, type LaunchSpec } from "./launcher.ts";
import { packageRoot } from "./mesh.ts";

const node = join(packageRoot, "node_modules/node/bin/node");
let folder: string;
let started: ManagedProcess[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-launcher-"));
  started = [];
});

afterEach(async () => {
  for (const one of started) await one.stop(0, "SIGKILL");
  rmSync(folder, { recursive: true });
});

function managed(script: string, over: Partial<LaunchSpec> = {}): ManagedProcess {
  const one = new ManagedProcess({
    name: "thing",
    command: [node, "-e", script],
    cwd: folder,
    logFile: join(folder, "thing.log"),
    readiness: "ipc",
    readyMsMax: 5_000,
    ...over,
  });
  started.push(one);
  return one;
}

const ready = `process.send({ event: "ready", service: "thing", ports: { http: 4711 } });`;
const stay = `setInterval(() => {}, 1000); process.on("disconnect", () => process.exit(0));`;

describe("ManagedProcess", () => {
  test("is started once it announces its ports, and ends when asked", async () => {
    const one = managed(`${ready} ${stay}`);
    await one.start();
    expect(one.ports).toEqual({ http: 4711 });
    const pid = one.pid ?? 0;
    expect(isAlive(pid)).toBe(true);
    const exit = await one.stop(2_000);
    expect(exit).toEqual({ code: null, signal: "SIGTERM", expected: true });
    expect(one.running).toBe(false);
    expect(isAlive(pid)).toBe(false);
  });

  test("fails with the last lines of its log when it ends before it is ready", async () => {
    const one = managed(`console.error("port 9002 is taken"); process.exit(3);`);
    await expect(one.start()).rejects.toThrow(
      /thing ended before it was ready; its last lines:\n {2}port 9002 is taken/,
    );
    expect(one.running).toBe(false);
  });

  test("shows only what the process of the last start wrote", async () => {
    writeFileSync(join(folder, "thing.log"), "line of an earlier life\n");
    const one = managed(`console.log("now"); process.exit(1);`);
    await expect(one.start()).rejects.toThrow();
    expect(one.logTail(10)).toEqual(["now"]);
  });

  test("is killed when it is not ready in time", async () => {
    const one = managed(stay, { readyMsMax: 200 });
    await expect(one.start()).rejects.toMatchObject({ code: "deadline_exceeded" });
    expect(one.running).toBe(false);
  });

  test("is killed when its start is given up", async () => {
    const one = managed(stay);
    const abort = new AbortController();
    const start = one.start(abort.signal);
    await sleep(50);
    const pid = one.pid ?? 0;
    abort.abort();
    await expect(start).rejects.toMatchObject({ code: "cancelled" });
    expect(isAlive(pid)).toBe(false);
  });

  test("is killed when it does not end within the grace", async () => {
    const one = managed(`process.on("SIGTERM", () => {}); ${ready} ${stay}`);
    await one.start();
    expect(await one.stop(100)).toEqual({ code: null, signal: "SIGKILL", expected: true });
  });

  test("says a program that does not exist", async () => {
    const one = managed("", { command: [join(folder, "no-such-program")], readiness: "none" });
    await expect(one.start()).rejects.toThrow(/thing ended at once/);
  });

  test("reports an end that nobody asked for as unexpected", async () => {
    const one = managed(`${ready} ${stay}`);
    const seen: boolean[] = [];
    one.onExit((exit) => seen.push(exit.expected));
    await one.start();
    one.crash();
    await one.exited();
    await one.start();
    await one.stop(1_000);
    expect(seen).toEqual([false, true]);
  });
});

test("a guarded program ends when the process that started the guard is killed", async () => {
  const guard = join(packageRoot, "services/cli/edge/up/guard.ts");
  const program = `require("fs").writeFileSync("pid", String(process.pid)); setInterval(() => {}, 1000);`;
  const parent = spawn(
    node,
    [
      "-e",
      `const child = require("child_process").spawn(process.execPath, [${JSON.stringify(guard)}, process.execPath, "-e", ${JSON.stringify(program)}], { stdio: ["ignore", "ignore", "inherit", "ipc"] });
       child.on("message", () => process.send("ready"));`,
    ],
    { cwd: folder, stdio: ["ignore", "ignore", "inherit", "ipc"] },
  );
  await once(parent, "message");
  const { readFileSync, existsSync } = await import("node:fs");
  const pidFile = join(folder, "pid");
  for (let tries = 0; tries < 100 && !existsSync(pidFile); tries++) await sleep(20);
  await sleep(20);
  const pid = Number(readFileSync(pidFile, "utf8"));
  expect(isAlive(pid)).toBe(true);
  parent.kill("SIGKILL");
  await once(parent, "exit");
  for (let tries = 0; tries < 100 && isAlive(pid); tries++) await sleep(20);
  expect(isAlive(pid)).toBe(false);
});
