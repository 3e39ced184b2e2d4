import { CandidateRows, rowsPerDecision } from "./candidate-rows.ts";
import type { DecisionRecord } from "./decision-record.ts";
import { PlaceIndex } from "./place-index.ts";

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
  readonly #byId: PlaceIndex;
  readonly #byRequest: PlaceIndex;
  readonly #decisionsMax: number;
  readonly #rows: CandidateRows;
  #size = 0;
  /** By place. */
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
    this.#byId = new PlaceIndex(options.decisionsMax);
    this.#byRequest = new PlaceIndex(options.decisionsMax);
  }

  /** Number kept. */
  get size(): number {
    return this.#size;
  }

  /** The newest decision. */
  get last(): DecisionRecord | undefined {
    return this.#last;
  }

  /** Keeps a decision; a request decided twice is found under its newest. */
  add(decision: DecisionRecord): void {
    // The newest is still being looked at; the one before it hardly is.
    this.#last?.pack(this.#rows, this.#lastPlace);
    this.#last = decision;
    const place = (this.#lastPlace + 1) % this.#decisionsMax;
    this.#lastPlace = place;
    const oldest = this.#kept[place];
    if (oldest === undefined) this.#size++;
    else {
      this.#byId.remove(place);
      this.#byRequest.remove(place);
    }
    this.#kept[place] = decision;
    this.#byId.add(place, decision.id);
    this.#byRequest.add(place, decision.requestId);
    this.#shortenOlder(decision);
    if (oldest !== undefined && this.#whole[this.#wholeFrom] === oldest) this.#dropOldestWhole();
  }

  /** By decision id. */
  byId(id: string): DecisionRecord | undefined {
    const place = this.#byId.find(id, (one) => this.#kept[one]?.id === id);
    return place < 0 ? undefined : this.#kept[place];
  }

  /** By request id. */
  byRequest(requestId: string): DecisionRecord | undefined {
    const place = this.#byRequest.find(
      requestId,
      (one) => this.#kept[one]?.requestId === requestId,
    );
    return place < 0 ? undefined : this.#kept[place];
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
