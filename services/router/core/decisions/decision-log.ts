import { CandidateRows, rowsPerDecision } from "./candidate-rows.ts";
import type { DecisionRecord } from "./decision-record.ts";

/**
 * Workers listed in whole decisions, candidates and filtered ones, that are kept. Each is about 1 KB: with a thousand
 * workers ten thousand whole decisions would fill 10 GB.
 */
const workersListedMax = 65_536;
/** What stays of each list of an older decision. */
const listKept = rowsPerDecision;

/**
 * The newest decisions by id and by request, at most `decisionsMax`; the oldest goes first. Lists of workers are kept
 * whole for the newest decisions, as many as fit, and shortened to the first eight for the older ones.
 */
export class DecisionLog {
  readonly #byId = new Map<string, DecisionRecord>();
  readonly #byRequest = new Map<string, DecisionRecord>();
  readonly #decisionsMax: number;
  readonly #rows: CandidateRows;
  /** By place. A map would do, but finding its oldest entry passes over every one that was deleted before. */
  readonly #kept: (DecisionRecord | undefined)[];
  /** Place of the newest decision; places are taken in turn. */
  #lastPlace = 0;
  #last: DecisionRecord | undefined;
  /** Whole decisions, oldest first, from `#wholeFrom` on. */
  #whole: DecisionRecord[] = [];
  #wholeFrom = 0;
  #workersListed = 0;

  constructor(options: { readonly decisionsMax: number }) {
    this.#decisionsMax = options.decisionsMax;
    this.#rows = new CandidateRows(options.decisionsMax);
    this.#kept = Array.from({ length: options.decisionsMax }, () => undefined);
  }

  /** Number kept. */
  get size(): number {
    return this.#byId.size;
  }

  /** The newest decision. */
  get last(): DecisionRecord | undefined {
    return this.#last;
  }

  /** Keeps a decision; a request decided twice is found under its newest. */
  add(decision: DecisionRecord): void {
    this.#byId.set(decision.id, decision);
    this.#byRequest.set(decision.requestId, decision);
    // The newest is still being looked at; the one before it hardly is.
    this.#last?.pack(this.#rows, this.#lastPlace);
    this.#last = decision;
    this.#lastPlace = (this.#lastPlace + 1) % this.#decisionsMax;
    const oldest = this.#kept[this.#lastPlace];
    this.#kept[this.#lastPlace] = decision;
    this.#shortenOlder(decision);
    if (oldest === undefined) return;
    this.#byId.delete(oldest.id);
    if (this.#whole[this.#wholeFrom] === oldest) this.#dropOldestWhole();
    if (this.#byRequest.get(oldest.requestId) === oldest) this.#byRequest.delete(oldest.requestId);
  }

  /** By decision id. */
  byId(id: string): DecisionRecord | undefined {
    return this.#byId.get(id);
  }

  /** By request id. */
  byRequest(requestId: string): DecisionRecord | undefined {
    return this.#byRequest.get(requestId);
  }

  #shortenOlder(newest: DecisionRecord): void {
    if (newest.listed <= 2 * listKept) return;
    this.#whole.push(newest);
    this.#workersListed += newest.listed;
    while (this.#workersListed > workersListedMax && this.#wholeFrom < this.#whole.length - 1) {
      this.#dropOldestWhole().shorten(listKept);
    }
  }

  #dropOldestWhole(): DecisionRecord {
    const oldest = this.#whole[this.#wholeFrom++] as DecisionRecord;
    this.#workersListed -= oldest.listed;
    if (this.#wholeFrom >= 1_024) {
      this.#whole = this.#whole.slice(this.#wholeFrom);
      this.#wholeFrom = 0;
    }
    return oldest;
  }
}
