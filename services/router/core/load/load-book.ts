import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import { WorkerBook, type WorkerLoad } from "./worker-book.ts";
import type { CloseReason, LoadReport, Reservation } from "./reservation.ts";
import type { WorkerColumns } from "./worker-columns.ts";

/** A reservation that ended, with the reason. */
export interface Closed {
  readonly reservation: Reservation;
  readonly reason: CloseReason;
}

const idle: WorkerLoad = {
  openRequests: 0,
  prefillBacklogMs: 0,
  queuedPrefillTokens: 0,
  decoding: 0,
  decodingContextTokens: 0,
  decodingTokensLeft: 0,
  overdueMs: 0,
};

const none: readonly Closed[] = [];

/**
 * Every open reservation by worker: what is placed where right now, without waiting for any scrape.
 * At most `reservationsMax`; when full the oldest of the fullest worker would be wrong to drop, so
 * `open` refuses and the caller sheds.
 */
export class LoadBook {
  readonly #workers = new Map<WorkerId, WorkerBook>();
  readonly #workerOf = new Map<string, WorkerId>();
  readonly #reservationsMax: number;
  readonly #onLegClosed: ((leg: Reservation, now: MonoMs) => void) | undefined;

  /** `onLegClosed` hears of every leg of a pair that ends, by whatever way. */
  constructor(options: {
    readonly reservationsMax: number;
    readonly onLegClosed?: (leg: Reservation, now: MonoMs) => void;
  }) {
    this.#reservationsMax = options.reservationsMax;
    this.#onLegClosed = options.onLegClosed;
  }

  /** Reservations held over all workers, those included that are believed to have ended unheard. */
  get openCount(): number {
    return this.#workerOf.size;
  }

  /** Opens a reservation; false when the book is full or the decision is open already. */
  open(reservation: Reservation, decodeMs: number): boolean {
    if (this.#workerOf.size >= this.#reservationsMax) return false;
    if (this.#workerOf.has(reservation.decisionId)) return false;
    this.#workerOf.set(reservation.decisionId, reservation.workerId);
    this.#book(reservation.workerId).open(reservation, decodeMs);
    return true;
  }

  /** Closes a reservation; `undefined` when it is not open (closing twice is normal). */
  close(decisionId: string, reason: CloseReason, now: MonoMs): Closed | undefined {
    const worker = this.#workerOf.get(decisionId);
    if (worker === undefined) return undefined;
    this.#workerOf.delete(decisionId);
    const heard = reason !== "reconciled" && reason !== "expired";
    const reservation = this.#workers.get(worker)?.close(decisionId, now, heard);
    if (reservation?.leg !== undefined) this.#onLegClosed?.(reservation, now);
    return reservation === undefined ? undefined : { reservation, reason };
  }

  /** See `WorkerBook.arrived`. Ignored when it is not open. */
  arrived(decisionId: string, inMs: number, now: MonoMs): void {
    const worker = this.#workerOf.get(decisionId);
    if (worker !== undefined) this.#workers.get(worker)?.arrived(decisionId, inMs, now);
  }

  /** Takes an engine's report; closes and returns what it shows to have ended unheard. */
  report(worker: WorkerId, report: LoadReport): readonly Closed[] {
    const lost = this.#book(worker).reconcile(report);
    if (lost.length === 0) return none;
    return lost.flatMap((id) => this.close(id, "reconciled", report.at) ?? []);
  }

  /** Closes everything on a worker whose engine is gone. */
  workerGone(worker: WorkerId, now: MonoMs): Closed[] {
    const ids = [...(this.#workers.get(worker)?.reservations() ?? [])].map((r) => r.decisionId);
    const closed = ids.flatMap((id) => this.close(id, "worker_gone", now) ?? []);
    const book = this.#workers.get(worker);
    book?.reset();
    if (book?.isAttached !== true) this.#workers.delete(worker);
    return closed;
  }

  /** Keeps a worker's load in a row of columns until `detach`; returns its book, which renews the row. */
  attach(worker: WorkerId, columns: WorkerColumns, row: number): WorkerBook {
    const book = this.#book(worker);
    book.attach(columns, row);
    return book;
  }

  /** Ends `attach`. */
  detach(worker: WorkerId): void {
    this.#workers.get(worker)?.detach();
  }

  /**
   * A worker has left: its reports mean nothing any more. What is open there still ends by record, release or hard
   * end; with the last of it the worker's book goes, so that names of workers do not pile up.
   */
  forget(worker: WorkerId): void {
    this.#workers.get(worker)?.forgetReports();
  }

  /** Closes reservations past their hard end. Call once a second. */
  expire(now: MonoMs): Closed[] {
    const closed: Closed[] = [];
    for (const book of this.#workers.values()) {
      for (const id of book.expired(now)) closed.push(...this.#closeList(id, "expired", now));
    }
    for (const [worker, book] of this.#workers) {
      const isEmpty = book.heldCount === 0 && book.report === undefined;
      if (isEmpty && !book.isAttached) this.#workers.delete(worker);
    }
    return closed;
  }

  /** Closes the reservations for which `match` holds, such as those of a peer that is gone. */
  closeWhere(match: (r: Reservation) => boolean, reason: CloseReason, now: MonoMs): Closed[] {
    const ids: string[] = [];
    for (const book of this.#workers.values()) {
      for (const r of book.reservations()) if (match(r)) ids.push(r.decisionId);
    }
    return ids.flatMap((id) => this.close(id, reason, now) ?? []);
  }

  /** Whether a decision is open. */
  isOpen(decisionId: string): boolean {
    return this.#workerOf.has(decisionId);
  }

  /** What a worker is believed to do now. */
  load(worker: WorkerId, now: MonoMs): WorkerLoad {
    return this.#workers.get(worker)?.load(now) ?? idle;
  }

  /** The engine's last report. */
  lastReport(worker: WorkerId): LoadReport | undefined {
    return this.#workers.get(worker)?.report;
  }

  /** Open reservations of one worker, oldest first. */
  reservationsOf(worker: WorkerId): readonly Reservation[] {
    return [...(this.#workers.get(worker)?.reservations() ?? [])];
  }

  #closeList(id: string, reason: CloseReason, now: MonoMs): Closed[] {
    const closed = this.close(id, reason, now);
    return closed === undefined ? [] : [closed];
  }

  #book(worker: WorkerId): WorkerBook {
    let book = this.#workers.get(worker);
    if (book === undefined) {
      book = new WorkerBook();
      this.#workers.set(worker, book);
    }
    return book;
  }
}
