import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";
import type { LoadReport, Reservation } from "./reservation.ts";

/** What a worker is believed to be doing at one moment. */
export interface WorkerLoad {
  /** Reservations open, own and peers'. */
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
}

/** Reservations that no report has confirmed yet are not surplus: reports lag dispatch by this much at most, ms. */
const dispatchLagMsMax = 50;

/**
 * One worker's reservations in the order in which they were opened, which is the order in which an engine
 * with first-come scheduling computes their prompts.
 */
export class WorkerBook {
  readonly #open = new Map<string, Reservation>();
  #prefillFreeAt: MonoMs = monoMs(0);
  #report: LoadReport | undefined;
  #surplusBefore = 0;
  #reportBeforeAt: MonoMs = monoMs(0);

  /** Number of open reservations. */
  get openCount(): number {
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

  /** Removes a reservation; work that it will not do any more moves the later ones forward. */
  close(decisionId: string, now: MonoMs): Reservation | undefined {
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
    return closed;
  }

  /** All open reservations, oldest first. */
  reservations(): Iterable<Reservation> {
    return this.#open.values();
  }

  /**
   * Takes a report. When running + waiting stays below what was open before the report, in two reports in a
   * row, the oldest surplus has ended without us hearing of it; returns those decision ids for the caller to close.
   */
  reconcile(report: LoadReport): string[] {
    const reported = report.running + report.waiting;
    let openBefore = 0;
    for (const r of this.#open.values()) {
      if (r.openedAt + dispatchLagMsMax < report.at) openBefore++;
      if (reported > 0 && r.hardEndAt < report.at + 30_000 && reported >= this.#open.size) {
        r.hardEndAt = monoMs(report.at + 30_000);
      }
    }
    const surplus = Math.max(0, openBefore - reported);
    const lost: string[] = [];
    const persistent = Math.min(surplus, this.#surplusBefore);
    if (persistent > 0) {
      for (const r of this.#open.values()) {
        if (lost.length >= persistent || r.openedAt + dispatchLagMsMax >= this.#reportBeforeAt)
          break;
        lost.push(r.decisionId);
      }
    }
    this.#surplusBefore = surplus - lost.length;
    this.#reportBeforeAt = report.at;
    this.#report = report;
    return lost;
  }

  /** Forgets what the engine said; the next report starts a comparison anew. */
  forgetReports(): void {
    this.#report = undefined;
    this.#surplusBefore = 0;
  }

  /** Ids of reservations past their hard end. */
  expired(now: MonoMs): string[] {
    const ids: string[] = [];
    for (const r of this.#open.values()) if (r.hardEndAt <= now) ids.push(r.decisionId);
    return ids;
  }

  /** What the worker is believed to do now. O(open reservations). */
  load(now: MonoMs): WorkerLoad {
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
      const decodeMs = Math.max(1, r.endsAt - r.prefillEndsAt);
      const done = Math.min(1, (now - r.prefillEndsAt) / decodeMs);
      decoding++;
      decodingContextTokens += r.promptTokens + r.expectedOutputTokens * done;
      decodingTokensLeft += r.expectedOutputTokens * (1 - done);
    }
    return {
      openRequests: this.#open.size,
      prefillBacklogMs: Math.max(0, this.#prefillFreeAt - now),
      queuedPrefillTokens: Math.round(queuedPrefillTokens),
      decoding,
      decodingContextTokens: Math.round(decodingContextTokens),
      decodingTokensLeft: Math.round(decodingTokensLeft),
    };
  }
}
