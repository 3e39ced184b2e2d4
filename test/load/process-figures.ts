import { readdirSync, readFileSync } from "node:fs";

/** Length of a clock tick of `/proc/<pid>/stat`, ms (USER_HZ is 100 on Linux). */
const tickMs = 10;

function scheduledMs(pid: number): number | undefined {
  let ns = 0n;
  try {
    for (const task of readdirSync(`/proc/${String(pid)}/task`)) {
      const text = readFileSync(`/proc/${String(pid)}/task/${task}/schedstat`, "utf8");
      ns += BigInt(text.split(" ", 1)[0] ?? "0");
    }
  } catch {
    return undefined;
  }
  return ns === 0n ? undefined : Number(ns) / 1e6;
}

/**
 * CPU time of a process so far, all its threads, user and system, ms. From `schedstat` (ns) where the kernel has it,
 * else from `stat` in steps of 10 ms.
 */
export function cpuMs(pid: number): number {
  const scheduled = scheduledMs(pid);
  if (scheduled !== undefined) return scheduled;
  const stat = readFileSync(`/proc/${String(pid)}/stat`, "utf8");
  // The name in brackets may hold spaces; utime and stime are fields 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * tickMs;
}

/** Where `cpuMs` reads, for the report. */
export function cpuSource(pid: number): "schedstat" | "stat, 10 ms steps" {
  return scheduledMs(pid) === undefined ? "stat, 10 ms steps" : "schedstat";
}

/** Resident memory of a process now, bytes. */
export function residentBytes(pid: number): number {
  const status = readFileSync(`/proc/${String(pid)}/status`, "utf8");
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? Number.NaN) * 1_024;
}
