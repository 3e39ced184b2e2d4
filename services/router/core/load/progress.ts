import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";

/** What one report shows of an engine's work. */
export interface WorkReport {
  /** When the engine was in that state. */
  readonly at: MonoMs;
  /** See `workDone`; `undefined` when its counters are not known, which counts as progress. */
  readonly workDone: number | undefined;
  /** Whether it has anything to do, by its own count or by the book's. */
  readonly isBusy: boolean;
  /** When the book expects the first thing to show; `undefined` when it holds nothing. */
  readonly expectedAt: MonoMs | undefined;
}

/**
 * Tells from an engine's reports whether it gets on with its work. An engine that has hung still takes requests and
 * answers its metrics page; only its counters stand still. An engine at rest owes nothing.
 */
export class Progress {
  #workDone: number | undefined;
  #seenAt: MonoMs = monoMs(-Infinity);
  #overdueMs = 0;

  /** When the last report was made that showed work done, or an engine at rest. */
  get seenAt(): MonoMs {
    return this.#seenAt;
  }

  /** For how long it has owed something, as of the last report, ms: first tokens count from when they were expected. */
  get overdueMs(): number {
    return this.#overdueMs;
  }

  /** Takes a report. */
  reported({ at, workDone, isBusy, expectedAt }: WorkReport): void {
    if (!isBusy || workDone === undefined || workDone !== this.#workDone) this.#seenAt = at;
    this.#workDone = workDone;
    this.#overdueMs = Math.max(0, at - Math.max(this.#seenAt, expectedAt ?? this.#seenAt));
  }

  /** What was reported means nothing any more. */
  reset(): void {
    this.#workDone = undefined;
    this.#seenAt = monoMs(-Infinity);
    this.#overdueMs = 0;
  }
}
