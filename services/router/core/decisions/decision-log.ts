import type { Decision } from "./decision.ts";

/**
 * Workers listed in whole decisions, candidates and filtered ones, that are kept. Each is about 1 KB: with a thousand
 * workers ten thousand whole decisions would fill 10 GB.
 */
const workersListedMax = 65_536;
/** What stays of each list of an older decision. */
const listKept = 8;

/**
 * The newest decisions by id and by request, at most `decisionsMax`; the oldest goes first. Lists of workers are kept
 * whole for the newest decisions, as many as fit, and shortened to the first eight for the older ones.
 */
export class DecisionLog {
  readonly #byId = new Map<string, Decision>();
  readonly #byRequest = new Map<string, Decision>();
  readonly #decisionsMax: number;
  #last: Decision | undefined;
  /** Whole decisions, oldest first, from `#wholeFrom` on. */
  #whole: Decision[] = [];
  #wholeFrom = 0;
  #workersListed = 0;

  constructor(options: { readonly decisionsMax: number }) {
    this.#decisionsMax = options.decisionsMax;
  }

  /** Number kept. */
  get size(): number {
    return this.#byId.size;
  }

  /** The newest decision. */
  get last(): Decision | undefined {
    return this.#last;
  }

  /** Keeps a decision; a request decided twice is found under its newest. */
  add(decision: Decision): void {
    this.#byId.set(decision.id, decision);
    this.#byRequest.set(decision.requestId, decision);
    this.#last = decision;
    this.#shortenOlder(decision);
    if (this.#byId.size <= this.#decisionsMax) return;
    const oldest = this.#byId.values().next().value;
    if (oldest === undefined) return;
    this.#byId.delete(oldest.id);
    if (this.#whole[this.#wholeFrom] === oldest) this.#dropOldestWhole();
    if (this.#byRequest.get(oldest.requestId) === oldest) this.#byRequest.delete(oldest.requestId);
  }

  /** By decision id. */
  byId(id: string): Decision | undefined {
    return this.#byId.get(id);
  }

  /** By request id. */
  byRequest(requestId: string): Decision | undefined {
    return this.#byRequest.get(requestId);
  }

  #shortenOlder(newest: Decision): void {
    if (listed(newest) <= 2 * listKept) return;
    this.#whole.push(newest);
    this.#workersListed += listed(newest);
    while (this.#workersListed > workersListedMax && this.#wholeFrom < this.#whole.length - 1) {
      shorten(this.#dropOldestWhole());
    }
  }

  #dropOldestWhole(): Decision {
    const oldest = this.#whole[this.#wholeFrom++] as Decision;
    this.#workersListed -= listed(oldest);
    if (this.#wholeFrom >= 1_024) {
      this.#whole = this.#whole.slice(this.#wholeFrom);
      this.#wholeFrom = 0;
    }
    return oldest;
  }
}

function listed(decision: Decision): number {
  return decision.candidates.length + decision.filtered.length;
}

function shorten(decision: Decision): void {
  const before = listed(decision);
  decision.candidates = decision.candidates.slice(0, listKept);
  decision.filtered = decision.filtered.slice(0, listKept);
  decision.leftOut += before - listed(decision);
}
