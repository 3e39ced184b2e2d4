import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";
import { Progress } from "./progress.ts";
import type { LoadReport, Reservation } from "./reservation.ts";
import { dispatchLagMsMax, UnheardEnds } from "./unheard-ends.ts";

/** What a worker is believed to be doing at one moment. */
export interface WorkerLoad {
  /** Requests open: reservations, own and peers', less those believed to have ended unheard. */
  readonly openRequests: number;
  /** Time until the engine has computed every prompt placed there, ms. */
  readonly prefillBacklogMs: number;
  /** Tokens of those prompts still to be computed. */
  readonly queuedPrefillTokens: number;
  /** Requests believed to be decoding. */
  readonly decoding: number;
  /** Context tokens of those. */
  readonly decodingContextTokens: number;
  /** Tokens they are still expected to generate. */
  readonly decodingTokensLeft: number;
  /** For how long the engine has owed progress that its counters do not show, ms; 0 while it makes some or rests. */
  readonly overdueMs: number;
}

/**
 * One worker's reservations in the order in which they were opened, which is the order in which an engine
 * with first-come scheduling computes their prompts.
 */
export class WorkerBook {
  readonly #open = new Map<string, Reservation>();
  #prefillFreeAt: MonoMs = monoMs(0);
  #report: LoadReport | undefined;
  readonly #unheard = new UnheardEnds();
  readonly #progress = new Progress();

  /** Number of reservations held, those included that are believed to have ended unheard. */
  get heldCount(): number {
    return this.#open.size;
  }

  /** Last report, if any came. */
  get report(): LoadReport | undefined {
    return this.#report;
  }

  /** When the prompts placed so far will have been computed. */
  get prefillFreeAt(): MonoMs {
    return this.#prefillFreeAt;
  }

  /** Adds a reservation whose `prefillMs` starts after all work before it; sets its times. */
  open(reservation: Reservation, decodeMs: number): void {
    const startsAt = Math.max(reservation.openedAt, this.#prefillFreeAt);
    reservation.prefillEndsAt = monoMs(startsAt + reservation.prefillMs);
    reservation.endsAt = monoMs(reservation.prefillEndsAt + decodeMs);
    const predictedMs = reservation.endsAt - reservation.openedAt;
    reservation.hardEndAt = monoMs(reservation.openedAt + predictedMs * 4 + 30_000);
    this.#prefillFreeAt = reservation.prefillEndsAt;
    this.#open.set(reservation.decisionId, reservation);
  }

  /**
   * Removes a reservation; work that it will not do any more moves the later ones forward. `heard` is false when
   * nobody has told of its end.
   */
  close(decisionId: string, now: MonoMs, heard = true): Reservation | undefined {
    const closed = this.#open.get(decisionId);
    if (closed === undefined) return undefined;
    const undoneMs = Math.min(closed.prefillMs, closed.prefillEndsAt - now);
    if (undoneMs > 0) {
      this.#prefillFreeAt = monoMs(Math.max(now, this.#prefillFreeAt - undoneMs));
      let isBehind = false;
      for (const later of this.#open.values()) {
        if (isBehind) {
          later.prefillEndsAt = monoMs(later.prefillEndsAt - undoneMs);
          later.endsAt = monoMs(later.endsAt - undoneMs);
        } else isBehind = later === closed;
      }
    }
    this.#open.delete(decisionId);
    if (heard) this.#unheard.heard(now, this.#open.size);
    else this.#unheard.gaveUp();
    return closed;
  }

  /** All open reservations, oldest first. */
  reservations(): Iterable<Reservation> {
    return this.#open.values();
  }

  /**
   * Takes a report. Returns the ids of reservations that have ended unheard beyond doubt, oldest first, for the caller
   * to close; `UnheardEnds` has the rule. What was placed after the engine's last progress has not ended, whatever its
   * gauges say: those of an engine that hangs may not count what has come since. O(reservations held).
   */
  reconcile(report: LoadReport): string[] {
    const reported = report.running + report.waiting;
    this.#watchProgress(report);
    const arrivedBefore = Math.min(report.at - dispatchLagMsMax, this.#progress.seenAt);
    const mustRun = reported > 0 && reported >= this.#open.size;
    let held = 0;
    let heldSurely = 0;
    for (const r of this.#open.values()) {
      if (r.openedAt < report.at) held++;
      if (r.openedAt < arrivedBefore) heldSurely++;
      if (mustRun && r.hardEndAt < report.at + 30_000) r.hardEndAt = monoMs(report.at + 30_000);
    }
    this.#report = report;
    const overdue = this.#unheard.reported({ at: report.at, reported, held, heldSurely });
    const ended: string[] = [];
    if (overdue.count === 0) return ended;
    for (const r of this.#open.values()) {
      if (ended.length >= overdue.count || r.openedAt >= overdue.openedBefore) break;
      ended.push(r.decisionId);
    }
    return ended;
  }

  /** Forgets what the engine said; the next report starts a comparison anew. */
  forgetReports(): void {
    this.#report = undefined;
    this.#unheard.reset();
    this.#progress.reset();
  }

  /** Ids of reservations past their hard end. */
  expired(now: MonoMs): string[] {
    const ids: string[] = [];
    for (const r of this.#open.values()) if (r.hardEndAt <= now) ids.push(r.decisionId);
    return ids;
  }

  /**
   * What the worker is believed to do now. The oldest that decode count as those that ended unheard.
   * O(reservations held).
   */
  load(now: MonoMs): WorkerLoad {
    let unheard = this.#unheard.count;
    let queuedPrefillTokens = 0;
    let decoding = 0;
    let decodingContextTokens = 0;
    let decodingTokensLeft = 0;
    for (const r of this.#open.values()) {
      const leftMs = r.prefillEndsAt - now;
      if (leftMs > 0) {
        const share = r.prefillMs > 0 ? Math.min(1, leftMs / r.prefillMs) : 1;
        queuedPrefillTokens += r.uncachedTokens * share;
        continue;
      }
      if (unheard > 0) {
        unheard--;
        continue;
      }
      const decodeMs = Math.max(1, r.endsAt - r.prefillEndsAt);
      const done = Math.min(1, (now - r.prefillEndsAt) / decodeMs);
      decoding++;
      decodingContextTokens += r.promptTokens + r.expectedOutputTokens * done;
      decodingTokensLeft += r.expectedOutputTokens * (1 - done);
    }
    return {
      openRequests: this.#open.size - this.#unheard.count,
      prefillBacklogMs: Math.max(0, this.#prefillFreeAt - now),
      queuedPrefillTokens: Math.round(queuedPrefillTokens),
      decoding,
      decodingContextTokens: Math.round(decodingContextTokens),
      decodingTokensLeft: Math.round(decodingTokensLeft),
      overdueMs: this.#progress.overdueMs,
    };
  }

  #watchProgress(report: LoadReport): void {
    let unheard = this.#unheard.count;
    let expectedAt: MonoMs | undefined;
    for (const r of this.#open.values()) {
      if (r.openedAt >= report.at) break;
      if (unheard-- > 0) continue;
      expectedAt = r.prefillEndsAt;
      break;
    }
    const isBusy = expectedAt !== undefined || report.running + report.waiting > 0;
    this.#progress.reported({ at: report.at, workDone: report.workDone, isBusy, expectedAt });
  }
}
