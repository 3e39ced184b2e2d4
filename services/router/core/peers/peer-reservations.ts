import { monoMs, type MonoMs, type WorkerId } from "../../../shared/core/ids.ts";
import { busyPrefillMs } from "../admission/pool-gate.ts";
import type { PoolGates } from "../admission/pool-gates.ts";
import type { EngineSpeeds } from "../load/engine-speeds.ts";
import type { LoadBook } from "../load/load-book.ts";
import type { RequestEnds } from "../load/request-ends.ts";
import type { Reservation } from "../load/reservation.ts";
import { defaultStepModel } from "../load/worker-model.ts";
import type { Members } from "../membership/members.ts";
import { isPrefillKey, prefillKeyOf } from "../placement/pairs/pair-legs.ts";
import type { PairPlacer } from "../placement/pairs/pair-placer.ts";
import type { PlacementTable } from "../placement/placement-table.ts";

/** A reservation as peers tell each other. */
export interface PeerReservation {
  readonly decisionId: string;
  readonly workerId: WorkerId;
  readonly promptTokens: number;
  readonly uncachedTokens: number;
  readonly expectedOutputTokens: number;
  readonly ageMs: number;
  /** Of the decode leg of a pair whose prompt is still being computed. */
  readonly awaits?: {
    readonly prefillWorker: WorkerId;
    readonly transferBytes: number;
    /** When its decode begins, ms after the decision. */
    readonly beginsInMs: number;
  };
}

const decodeLeg = { leg: "decode", arrivesAt: Infinity } as const;

/** Keeps what peers have placed in the same book as our own: a worker is as busy with their requests as with ours. */
export class PeerReservations {
  readonly #book: LoadBook;
  readonly #members: Members;
  readonly #table: PlacementTable;
  readonly #pairs: PairPlacer;
  readonly #speeds: EngineSpeeds;
  readonly #gates: PoolGates;
  readonly #ends: RequestEnds;

  constructor(of: {
    readonly book: LoadBook;
    readonly members: Members;
    readonly table: PlacementTable;
    readonly pairs: PairPlacer;
    readonly speeds: EngineSpeeds;
    readonly gates: PoolGates;
    readonly ends: RequestEnds;
  }) {
    this.#book = of.book;
    this.#members = of.members;
    this.#table = of.table;
    this.#pairs = of.pairs;
    this.#speeds = of.speeds;
    this.#gates = of.gates;
    this.#ends = of.ends;
  }

  /** A peer made a reservation. */
  reserved(reservation: PeerReservation, now: MonoMs): void {
    const { decisionId, workerId, awaits } = reservation;
    const { promptTokens, uncachedTokens, expectedOutputTokens } = reservation;
    const cached = promptTokens - uncachedTokens;
    const model = this.#speeds.modelOf(workerId);
    const prefillMs = model?.prefillMs(uncachedTokens, cached) ?? 0;
    const load = this.#book.load(workerId, now);
    const stepMs =
      model?.decodeStepMs(load.decoding + 1, load.decodingContextTokens + promptTokens) ?? 0;
    this.#speeds.usedByPeer(workerId, now);
    const member = this.#members.get(workerId);
    const stepTokensMax = member?.facts?.stepTokensMax ?? 0;
    const steps = model?.steps ?? defaultStepModel;
    const on = { steps, load, matchedTokens: cached, stepTokensMax };
    const placed = {
      workMs: busyPrefillMs(on, uncachedTokens),
      tokens: uncachedTokens + expectedOutputTokens / 2,
    };
    if (member !== undefined) this.#gates.get(member.pool)?.rooms.opened(workerId, placed, now);
    const at = monoMs(now - reservation.ageMs);
    const opened = {
      decisionId,
      workerId,
      own: false,
      openedAt: at,
      promptTokens,
      uncachedTokens,
      expectedOutputTokens,
      prefillMs,
      prefillEndsAt: at,
      endsAt: at,
      hardEndAt: at,
    };
    const decodeMs = expectedOutputTokens * stepMs;
    if (awaits !== undefined) this.#awaits({ ...opened, ...decodeLeg }, awaits, decodeMs);
    else if (isPrefillKey(decisionId)) {
      this.#book.open({ ...opened, leg: "prefill" }, 0);
      this.#pairs.prefillPlaced(workerId, prefillMs, at);
    } else this.#book.open(opened, decodeMs);
  }

  /** A peer says that a reservation ended; with the decode leg of a pair its prefill leg is over too. */
  closed(decisionId: string, now: MonoMs): void {
    this.#ends.closePrefill(decisionId, "released", now);
    const closed = this.#book.close(decisionId, "released", now);
    if (closed !== undefined) this.#gates.freed(closed.reservation.workerId);
  }

  /**
   * A peer's snapshot named every reservation that this life of it has open. What an earlier life placed may still
   * run on its engine, and the new one knows nothing of it: records, reports and hard ends close that.
   */
  openOnly(router: string, epoch: bigint, open: ReadonlySet<string>, now: MonoMs): void {
    const prefix = `${router}.${epoch}.`;
    const closed = this.#book.closeWhere(
      (r) => !r.own && r.decisionId.startsWith(prefix) && !open.has(r.decisionId),
      "released",
      now,
    );
    for (const { reservation } of closed) this.#gates.freed(reservation.workerId);
  }

  /** The decode leg of a peer's pair, whose prompt is being computed. Its prefill leg was told before. */
  #awaits(
    leg: Reservation,
    awaits: NonNullable<PeerReservation["awaits"]>,
    decodeMs: number,
  ): void {
    const { decisionId, workerId, promptTokens, openedAt } = leg;
    const { prefillWorker, transferBytes, beginsInMs } = awaits;
    const isPrefillOpen = this.#book.isOpen(prefillKeyOf(decisionId));
    if (!this.#book.open({ ...leg, beginsInMs }, decodeMs)) return;
    const bytesPerToken = this.#pairs.members.bytesPerToken(this.#table.rowOf(prefillWorker));
    const movedTokens = Math.min(promptTokens, Math.round(transferBytes / bytesPerToken));
    const pair = { decisionId, prefillWorker, decodeWorker: workerId, transferBytes, movedTokens };
    const prefillMs = Math.max(0, this.#prefillEndOf(decisionId, prefillWorker) - openedAt);
    const afterMs = Math.max(0, beginsInMs - prefillMs);
    this.#pairs.legs.opened({ ...pair, beginsInMs: afterMs }, isPrefillOpen, openedAt);
    // Its end was told before, or there was no room for it: nothing else would say that its decode is here.
    if (!isPrefillOpen) this.#book.arrived(decisionId, 0, openedAt);
  }

  #prefillEndOf(decisionId: string, worker: WorkerId): number {
    const key = prefillKeyOf(decisionId);
    return this.#book.reservationsOf(worker).find((r) => r.decisionId === key)?.prefillEndsAt ?? 0;
  }
}
