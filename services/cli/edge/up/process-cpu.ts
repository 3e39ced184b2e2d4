import { readdirSync, readFileSync } from "node:fs";

/** Length of a clock tick of `/proc/<pid>/stat`, ms (USER_HZ is 100 on Linux). */
const tickMs = 10;

/** CPU time of a process so far, all its threads, user and system, ms; undefined where the system does not tell. */
export function cpuMsOf(pid: number): number | undefined {
  return scheduledMs(pid) ?? tickedMs(pid);
}

/** Sum over several processes; undefined when one of them is gone, or the system does not tell. */
export function cpuMsOfAll(pids: readonly (number | undefined)[]): number | undefined {
  let sum = 0;
  for (const pid of pids) {
    const ms = pid === undefined ? undefined : cpuMsOf(pid);
    if (ms === undefined) return undefined;
    sum += ms;
  }
  return sum;
}

/** From `schedstat`, to the nanosecond; threads that have ended are not in it, which those of a service do not. */
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

function tickedMs(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${String(pid)}/stat`, "utf8");
    // The name in brackets may hold spaces; utime and stime are fields 14 and 15.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) * tickMs;
  } catch {
    return undefined;
  }
}
