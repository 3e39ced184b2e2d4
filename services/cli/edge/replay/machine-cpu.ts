import { readFileSync } from "node:fs";

interface CpuTimes {
  readonly busy: number;
  readonly total: number;
}

/** Times of all CPUs from /proc/stat, in ticks; `undefined` where there is no such file. */
function readTimes(): CpuTimes | undefined {
  let text: string;
  try {
    text = readFileSync("/proc/stat", "latin1");
  } catch {
    // Only Linux has it; elsewhere the figure is reported as unknown.
    return undefined;
  }
  const fields = /^cpu\s+(.+)$/m.exec(text)?.[1]?.trim().split(/\s+/).map(Number);
  if (fields === undefined || fields.length < 8 || fields.some(Number.isNaN)) return undefined;
  // user nice system idle iowait irq softirq steal; guest time is already in user and nice.
  const total = fields.slice(0, 8).reduce((sum, ticks) => sum + ticks, 0);
  const idle = (fields[3] as number) + (fields[4] as number);
  return { busy: total - idle, total };
}

/** CPU use of the whole machine since it was made, 0–1 over all CPUs. */
export class MachineCpu {
  readonly #start = readTimes();

  /** Share of busy time so far (waiting for a disk is idle, stolen time is busy); `null` off Linux. */
  ratio(): number | null {
    const now = readTimes();
    if (this.#start === undefined || now === undefined) return null;
    const total = now.total - this.#start.total;
    return total > 0 ? (now.busy - this.#start.busy) / total : null;
  }
}
