import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";
import { Progress } from "./progress.ts";
import type { LoadReport, Reservation } from "./reservation.ts";
import { dispatchLagMsMax, UnheardEnds } from "./unheard-ends.ts";
import { column, rowLength, type WorkerColumns } from "./worker-columns.ts";

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

/** Requests that an engine may report beyond the book without counting as other traffic: they are on their way. */
const foreignSlack = 2;

/** Tokens as they are counted: whole, and never less than none. */
export function wholeTokens(tokens: number): number {
  return tokens > 0 ? Math.floor(tokens + 0.5) : 0;
}

/**
 * One worker's reservations in the order in which they were opened, which is the order in which an engine
 * with first-come scheduling computes their prompts.
 *
 * Between two predicted events (a prefill begins or ends, an answer ends) every load is a straight line over time. The
 * lines are drawn when they are asked for, in O(reservations held), and serve until the next such event or until
 * the book changes. A book that is attached to a row of `WorkerColumns` keeps a copy of them there.
 */
export class WorkerBook {
  readonly #open = new Map<string, Reservation>();
  #prefillFreeAt: MonoMs = monoMs(0);
  #report: LoadReport | undefined;
  readonly #unheard = new UnheardEnds();
  readonly #progress = new Progress();
  #columns: WorkerColumns | undefined;
  #at = 0;
  // The lines; see `column`.
  #linesFrom = 0;
  #linesUntil = -Infinity;
  #decoding = 0;
  #queuedTokens = 0;
  #queuedRate = 0;
  #contextTokens = 0;
  #answerRate = 0;
  #tokensLeft = 0;

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

  /** Requests that the engine reports beyond the book: traffic that does not pass this mesh. */
  get foreignRequests(): number {
    if (this.#report === undefined) return 0;
    const reported = this.#report.running + this.#report.waiting;
    return Math.max(0, reported - this.#openRequests - foreignSlack);
  }

  get #openRequests(): number {
    return this.#open.size - this.#unheard.count;
  }

  /** Whether its lines are kept in a row of columns. */
  get isAttached(): boolean {
    return this.#columns !== undefined;
  }

  /** Keeps the lines in this row from now on; `renew` writes them. */
  attach(columns: WorkerColumns, row: number): void {
    this.#columns = columns;
    this.#at = row * rowLength;
    this.#changed();
  }

  /** Leaves its row. */
  detach(): void {
    this.#columns = undefined;
  }

  /** Adds a reservation whose `prefillMs` starts after all work before it; sets its times. */
  open(reservation: Reservation, decodeMs: number): void {
    const startsAt = Math.max(reservation.openedAt, this.#prefillFreeAt);
    reservation.prefillEndsAt = monoMs(startsAt + reservation.prefillMs);
    const { beginsInMs } = reservation;
    if (beginsInMs !== undefined) {
      // Nothing of it is computed here before its KV comes, so that it keeps no prompt waiting.
      reservation.prefillEndsAt = monoMs(reservation.openedAt + beginsInMs);
    }
    reservation.endsAt = monoMs(reservation.prefillEndsAt + decodeMs);
    const predictedMs = reservation.endsAt - reservation.openedAt;
    reservation.hardEndAt = monoMs(reservation.openedAt + predictedMs * 4 + 30_000);
    if (beginsInMs === undefined) this.#prefillFreeAt = reservation.prefillEndsAt;
    this.#open.set(reservation.decisionId, reservation);
    this.#changed();
  }

  /** The prompt of a decode leg has been computed: its decode begins `inMs` from now. */
  arrived(decisionId: string, inMs: number, now: MonoMs): void {
    const leg = this.#open.get(decisionId);
    if (leg?.arrivesAt !== Infinity) return;
    leg.arrivesAt = now;
    const decodeMs = leg.endsAt - leg.prefillEndsAt;
    leg.prefillEndsAt = monoMs(now + inMs);
    leg.endsAt = monoMs(leg.prefillEndsAt + decodeMs);
    leg.hardEndAt = monoMs(Math.max(leg.hardEndAt, leg.endsAt + 30_000));
    this.#changed();
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
    this.#changed();
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
      const arrivedAt = r.arrivesAt ?? r.openedAt;
      if (arrivedAt < report.at) held++;
      if (arrivedAt < arrivedBefore) heldSurely++;
      if (mustRun && r.hardEndAt < report.at + 30_000) r.hardEndAt = monoMs(report.at + 30_000);
    }
    this.#report = report;
    this.#changed();
    const overdue = this.#unheard.reported({ at: report.at, reported, held, heldSurely });
    const ended: string[] = [];
    if (overdue.count === 0) return ended;
    for (const r of this.#open.values()) {
      if (ended.length >= overdue.count || r.openedAt >= overdue.openedBefore) break;
      if (r.arrivesAt !== undefined && r.arrivesAt >= overdue.openedBefore) continue;
      ended.push(r.decisionId);
    }
    return ended;
  }

  /** Forgets what the engine said; the next report starts a comparison anew. */
  forgetReports(): void {
    this.#report = undefined;
    this.#unheard.reset();
    this.#progress.reset();
    this.#changed();
  }

  /** Forgets everything: the engine that did it is gone. */
  reset(): void {
    this.#open.clear();
    this.#prefillFreeAt = monoMs(0);
    this.forgetReports();
  }

  /** Ids of reservations past their hard end. */
  expired(now: MonoMs): string[] {
    const ids: string[] = [];
    for (const r of this.#open.values()) if (r.hardEndAt <= now) ids.push(r.decisionId);
    return ids;
  }

  /** What the worker is believed to do now. */
  load(now: MonoMs): WorkerLoad {
    this.renew(now);
    const elapsedMs = now - this.#linesFrom;
    return {
      openRequests: this.#openRequests,
      prefillBacklogMs: Math.max(0, this.#prefillFreeAt - now),
      queuedPrefillTokens: wholeTokens(this.#queuedTokens + this.#queuedRate * elapsedMs),
      decoding: this.#decoding,
      decodingContextTokens: wholeTokens(this.#contextTokens + this.#answerRate * elapsedMs),
      decodingTokensLeft: wholeTokens(this.#tokensLeft - this.#answerRate * elapsedMs),
      overdueMs: this.#progress.overdueMs,
    };
  }

  /** Draws the lines anew if they hold no more. */
  renew(now: MonoMs): void {
    if (now >= this.#linesFrom && now < this.#linesUntil) return;
    this.#draw(now);
    if (this.#columns === undefined) return;
    const { values } = this.#columns;
    const at = this.#at;
    values[at + column.linesFrom] = this.#linesFrom;
    values[at + column.linesUntil] = this.#linesUntil;
    values[at + column.prefillFreeAt] = this.#prefillFreeAt;
    values[at + column.decoding] = this.#decoding;
    values[at + column.contextBase] = this.#contextTokens;
    values[at + column.answerRate] = this.#answerRate;
    values[at + column.tokensLeftBase] = this.#tokensLeft;
    values[at + column.queuedBase] = this.#queuedTokens;
    values[at + column.queuedRate] = this.#queuedRate;
    values[at + column.openRequests] = this.#openRequests;
    values[at + column.foreignRequests] = this.foreignRequests;
    values[at + column.overdueMs] = this.#progress.overdueMs;
    values[at + column.kvUsageRatio] = this.#report?.kvUsageRatio ?? 0;
    values[at + column.waiting] = this.#report?.waiting ?? 0;
  }

  /** The oldest that decode count as those that ended unheard. */
  #draw(now: MonoMs): void {
    let unheard = this.#unheard.count;
    let until = Infinity;
    this.#decoding = 0;
    this.#queuedTokens = 0;
    this.#queuedRate = 0;
    this.#contextTokens = 0;
    this.#answerRate = 0;
    this.#tokensLeft = 0;
    for (const r of this.#open.values()) {
      const leftMs = r.prefillEndsAt - now;
      if (leftMs > 0) {
        const beginsAt = r.prefillEndsAt - r.prefillMs;
        const isWaiting = r.prefillMs <= 0 || beginsAt > now;
        if (isWaiting) this.#queuedTokens += r.uncachedTokens;
        else {
          const rate = r.uncachedTokens / r.prefillMs;
          this.#queuedTokens += rate * leftMs;
          this.#queuedRate -= rate;
        }
        until = Math.min(until, isWaiting && r.prefillMs > 0 ? beginsAt : r.prefillEndsAt);
        continue;
      }
      // A leg whose prompt takes longer elsewhere than was thought is not here yet.
      if (r.arrivesAt === Infinity) continue;
      if (unheard > 0) {
        unheard--;
        continue;
      }
      const decodeMs = Math.max(1, r.endsAt - r.prefillEndsAt);
      const endsAt = r.prefillEndsAt + decodeMs;
      this.#decoding++;
      if (now >= endsAt) {
        this.#contextTokens += r.promptTokens + r.expectedOutputTokens;
        continue;
      }
      const rate = r.expectedOutputTokens / decodeMs;
      const done = rate * (now - r.prefillEndsAt);
      this.#contextTokens += r.promptTokens + done;
      this.#tokensLeft += r.expectedOutputTokens - done;
      this.#answerRate += rate;
      until = Math.min(until, endsAt);
    }
    this.#linesFrom = now;
    this.#linesUntil = until;
  }

  #changed(): void {
    this.#linesUntil = -Infinity;
    if (this.#columns === undefined) return;
    this.#columns.values[this.#at + column.linesUntil] = -Infinity;
  }

  #watchProgress(report: LoadReport): void {
    let unheard = this.#unheard.count;
    let expectedAt: MonoMs | undefined;
    for (const r of this.#open.values()) {
      if (r.openedAt >= report.at) break;
      if (r.arrivesAt !== undefined && r.arrivesAt >= report.at) continue;
      if (unheard-- > 0) continue;
      expectedAt = r.prefillEndsAt;
      break;
    }
    const isBusy = expectedAt !== undefined || report.running + report.waiting > 0;
    this.#progress.reported({ at: report.at, workDone: report.workDone, isBusy, expectedAt });
  }
}
