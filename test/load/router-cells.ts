import type { ExchangeMode } from "./ext-proc-messages.ts";
import { median, quantile } from "./figures.ts";
import type { RunResult } from "./load-generator.ts";
import { addBuckets, bucketQuantile, type Buckets } from "./router-metrics.ts";
import type { RouterProcess } from "./router-process.ts";
import type { ScriptedMembers } from "./scripted-members.ts";

/** What answers the generator. */
export type TargetName = "router" | "large" | "baseline" | "empty" | "stock";

/** A router and its members. */
export interface Mesh {
  readonly router: RouterProcess;
  readonly members: ScriptedMembers;
}

/** A process under test. */
export interface Target {
  readonly name: TargetName;
  readonly address: string;
  readonly pid: number;
  /** For routers. */
  readonly mesh: Mesh | undefined;
}

/** One row of the report. */
export interface CellReport {
  readonly target: TargetName;
  readonly mode: ExchangeMode;
  readonly sizeKb: number;
  readonly requests: number;
  /** Median of the rounds. */
  readonly cpuUsPerRequest: number;
  /** The same without what the process does in that time when nobody asks anything. */
  readonly netCpuUsPerRequest: number;
  readonly cpuUsByRound: readonly number[];
  /** Requests a second in the closed loop; the generator shares the machine. */
  readonly perSecond: number;
  readonly decisionMsP50: number;
  readonly decisionMsP99: number;
  /** From the router's own histogram; NaN for references. */
  readonly ownDecisionMsP50: number;
  readonly ownDecisionMsP99: number;
}

/** One target, body mode and body size, measured in rounds. */
export class Cell {
  readonly target: Target;
  readonly mode: ExchangeMode;
  readonly sizeKb: number;
  readonly #cpuUs: number[] = [];
  readonly #netCpuUs: number[] = [];
  readonly #perSecond: number[] = [];
  readonly #decisionMs: number[] = [];
  readonly #ownBuckets = new Map<number, number>();

  constructor(target: Target, mode: ExchangeMode, sizeKb: number) {
    this.target = target;
    this.mode = mode;
    this.sizeKb = sizeKb;
  }

  /**
   * Takes one round: what the generator saw, CPU used, of it what the process would have used without requests, and the router's
   * histogram before and after.
   */
  add(
    result: RunResult,
    used: { readonly ms: number; readonly idleMs: number },
    before: Buckets,
    after: Buckets,
  ): void {
    this.#cpuUs.push((used.ms * 1_000) / result.answered);
    this.#netCpuUs.push(((used.ms - used.idleMs) * 1_000) / result.answered);
    this.#perSecond.push((result.answered * 1_000) / result.elapsedMs);
    this.#decisionMs.push(...result.decisionMs);
    addBuckets(this.#ownBuckets, before, after);
  }

  report(): CellReport {
    return {
      target: this.target.name,
      mode: this.mode,
      sizeKb: this.sizeKb,
      requests: this.#decisionMs.length,
      cpuUsPerRequest: median(this.#cpuUs),
      netCpuUsPerRequest: median(this.#netCpuUs),
      cpuUsByRound: this.#cpuUs.map(Math.round),
      perSecond: median(this.#perSecond),
      decisionMsP50: median(this.#decisionMs),
      decisionMsP99: quantile(this.#decisionMs, 0.99),
      ownDecisionMsP50: 1_000 * bucketQuantile(this.#ownBuckets, 0.5),
      ownDecisionMsP99: 1_000 * bucketQuantile(this.#ownBuckets, 0.99),
    };
  }
}
