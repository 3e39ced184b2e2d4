import type { MonoMs, WorkerId } from "../../../../shared/core/ids.ts";
import type { LoadBook } from "../../load/load-book.ts";
import type { Reservation } from "../../load/reservation.ts";
import type { PlacementTable } from "../placement-table.ts";
import type { Link, LinkBook, LinkEnds } from "./link-book.ts";

/** What stands behind the decision id in the key of a prefill leg's reservation; no decision id ends like this. */
const prefillSuffix = "#p";

/** Key of the reservation of a decision's prefill leg. That of its decode leg is the decision id. */
export function prefillKeyOf(decisionId: string): string {
  return decisionId + prefillSuffix;
}

/** The decision of a key of either leg. */
export function decisionOfKey(key: string): string {
  return key.endsWith(prefillSuffix) ? key.slice(0, -prefillSuffix.length) : key;
}

/** Whether a key is that of a prefill leg. */
export function isPrefillKey(key: string): boolean {
  return key.endsWith(prefillSuffix);
}

/** A pair that was placed, here or by a peer. */
export interface PlacedPair {
  readonly decisionId: string;
  readonly prefillWorker: WorkerId;
  readonly decodeWorker: WorkerId;
  readonly transferBytes: number;
  /** Prompt tokens whose KV comes to the decode worker. */
  readonly movedTokens: number;
  /** From the end of the prefill leg to the first step of the answer, ms. */
  readonly beginsInMs: number;
}

/** Ended legs remembered of one worker between two reports; those that its engine never finished must not add up. */
const endedPrefillsMax = 64;

interface OpenPair extends PlacedPair {
  isPrefillOpen: boolean;
  isDecodeOpen: boolean;
  isAwaited: boolean;
  /** The link that its bytes are on; absent once they are over, and where an end was no member. */
  link: Link | undefined;
}

/**
 * Pairs whose legs are open: which bytes are on which link, and which prompts are on their way to which decode worker. It
 * hears of every end from the load book, so that nothing stays; a pair is gone with its second leg.
 *
 * | event \ pair | prefill open | prefill closed, moving | decoding |
 * |---|---|---|---|
 * | prefill leg closes | decode leg arrives at its engine | – | – |
 * | first token | the KV was not needed, or the end of prefill was not heard: as both | bytes leave the link | – |
 * | decode leg closes | bytes leave the link | bytes leave the link | gone |
 */
export class PairLegs {
  readonly #book: LoadBook;
  readonly #links: LinkBook;
  readonly #table: PlacementTable;
  readonly #open = new Map<string, OpenPair>();
  /** Prefill legs that ended and that no report was laid against yet, by worker. */
  readonly #endedPrefills = new Map<WorkerId, number>();
  /** Prompt tokens on their way, by decode worker. */
  readonly #awaited = new Map<WorkerId, number>();

  constructor(options: {
    readonly book: LoadBook;
    readonly links: LinkBook;
    readonly table: PlacementTable;
  }) {
    this.#book = options.book;
    this.#links = options.links;
    this.#table = options.table;
  }

  /** Pairs of which a leg is open. */
  get size(): number {
    return this.#open.size;
  }

  /** The open pair of a decision. */
  get(decisionId: string): PlacedPair | undefined {
    return this.#open.get(decisionId);
  }

  /** Prompt tokens on their way to the engine of a row. */
  awaitedTokens(row: number): number {
    return this.#awaited.size === 0
      ? 0
      : (this.#awaited.get(this.#table.worker(row).workerId) ?? 0);
  }

  /** Both reservations were opened, or the decode leg's alone, as a peer tells them one by one. */
  opened(pair: PlacedPair, isPrefillOpen: boolean, now: MonoMs): void {
    const ends = this.endsOf(pair);
    const link = ends && this.#links.opened(ends, pair.transferBytes, now);
    const state = { isPrefillOpen, isDecodeOpen: true, isAwaited: true, link };
    this.#open.set(pair.decisionId, { ...pair, ...state });
    this.#await(pair.decodeWorker, pair.movedTokens);
  }

  /** Whether the reservation of a decision's prefill leg may be open. Cheap when there are no pairs. */
  mayHavePrefill(decisionId: string): boolean {
    return this.#open.size > 0 && this.#open.has(decisionId);
  }

  /** The load book closed a leg. */
  closed(reservation: Reservation, now: MonoMs): void {
    const pair = this.#open.get(decisionOfKey(reservation.decisionId));
    if (pair === undefined) return;
    if (reservation.leg === "prefill") {
      pair.isPrefillOpen = false;
      const ended = this.#endedPrefills.get(pair.prefillWorker) ?? 0;
      this.#endedPrefills.set(pair.prefillWorker, Math.min(endedPrefillsMax, ended + 1));
      if (pair.isDecodeOpen) this.#book.arrived(pair.decisionId, pair.beginsInMs, now);
    } else {
      pair.isDecodeOpen = false;
      this.#arrived(pair);
      this.#moved(pair);
    }
    if (!pair.isPrefillOpen && !pair.isDecodeOpen) this.#open.delete(pair.decisionId);
  }

  /** The first token of a pair's answer was seen. */
  firstToken(decisionId: string): void {
    const pair = this.#open.get(decisionId);
    if (pair === undefined) return;
    this.#arrived(pair);
    this.#moved(pair);
  }

  /**
   * How many of the requests that a worker's engine finished were prefill legs, which have one token and say nothing of the length of
   * answers. Each is told once.
   */
  takeEndedPrefills(worker: WorkerId, finished: number): number {
    const ended = this.#endedPrefills.get(worker);
    if (ended === undefined) return 0;
    const taken = Math.min(ended, finished);
    if (ended > taken) this.#endedPrefills.set(worker, ended - taken);
    else this.#endedPrefills.delete(worker);
    return taken;
  }

  /** A worker left. */
  forget(worker: WorkerId): void {
    this.#endedPrefills.delete(worker);
  }

  /** Rows of a pair's workers, while both are members. */
  endsOf({ prefillWorker, decodeWorker }: PlacedPair): LinkEnds | undefined {
    const from = this.#table.rowOf(prefillWorker);
    const to = this.#table.rowOf(decodeWorker);
    if (from < 0 || to < 0) return undefined;
    const isSameHost = this.#table.worker(from).host === this.#table.worker(to).host;
    return { from, to, isSameHost };
  }

  #arrived(pair: OpenPair): void {
    if (!pair.isAwaited) return;
    pair.isAwaited = false;
    this.#await(pair.decodeWorker, -pair.movedTokens);
  }

  #moved(pair: OpenPair): void {
    const { link } = pair;
    if (link === undefined) return;
    pair.link = undefined;
    this.#links.closed(link, pair.transferBytes);
  }

  #await(worker: WorkerId, tokens: number): void {
    const left = (this.#awaited.get(worker) ?? 0) + tokens;
    if (left > 0) this.#awaited.set(worker, left);
    else this.#awaited.delete(worker);
  }
}
