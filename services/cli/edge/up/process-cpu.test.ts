import { describe, expect, test } from "vitest";
import { cpuMsOf, cpuMsOfAll } from "./process-cpu.ts";

/** No process has this id: Linux gives none above 4,194,304. */
const nobody = 2 ** 30;

describe.runIf(process.platform === "linux")("CPU of a process", () => {
  test("grows with the work that it does", () => {
    const before = cpuMsOf(process.pid) ?? Number.NaN;
    const until = process.cpuUsage().user + 60_000;
    let x = 0;
    while (process.cpuUsage().user < until) x = Math.sqrt(x + 1);
    const spent = (cpuMsOf(process.pid) ?? Number.NaN) - before;
    expect(spent).toBeGreaterThanOrEqual(40);
    expect(spent).toBeLessThan(2_000);
  });

  test("is unknown of one that is gone, also in a sum", () => {
    expect(cpuMsOf(nobody)).toBeUndefined();
    expect(cpuMsOfAll([process.pid, nobody])).toBeUndefined();
    expect(cpuMsOfAll([process.pid, undefined])).toBeUndefined();
    expect(cpuMsOfAll([process.pid])).toBeGreaterThan(0);
  });
});
