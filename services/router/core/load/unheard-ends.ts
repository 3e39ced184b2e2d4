import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";

/** A request counts in an engine's gauges this long after its decision at the latest, when nothing stalls, ms. */
export const dispatchLagMsMax = 50;
/** The record of an end is heard this long after the end at the latest: 20 ms in Envoy's buffer, the rest on the way, ms. */
const recordLagMsMax = 50;
/**
 * What reports show all this time is closed. Longer than the longest step, during which gauges stand still while
 * requests arrive.
 */
const closeAfterMs = 1_000;
/** Closings kept to compare with a report that was under way when they were heard. */
const closingsKept = 1_024;

/** One report beside the book, requests of one worker. */
export interface Comparison {
  /** When the engine was in that state. */
  readonly at: MonoMs;
  /** Running and waiting. */
  readonly reported: number;
  /** Reservations held that were opened before `at`. */
  readonly held: number;
  /** Those of them that the report must have counted, had they not ended. */
  readonly heldSurely: number;
}

/** Reservations that are to be closed. */
export interface Overdue {
  readonly count: number;
  /** Only those opened before. */
  readonly openedBefore: MonoMs;
}

/**
 * How many of the reservations of one worker have ended without our having heard of it.
 *
 * A report names a number of requests for a moment in the past, nobody's name, so it cannot say which have ended, but
 * it bounds how many: at least (held and surely arrived) − reported, at most (held at all) − reported, where those on
 * their way to the engine make the difference. The number believed moves by the least that puts it within the bounds.
 * Between reports it is right to subtract it from what is held, because each end that is heard then takes away exactly
 * one, whichever requests are the lost ones.
 *
 * What a report shows for the first time may be ends whose records are on their way: closings heard within
 * `recordLagMsMax` come off it. What the lower bound shows in every report of a second is closed for good, oldest
 * first. That is a guess at names, not at the number: when the record of one so closed comes, the next report shows
 * one more.
 */
export class UnheardEnds {
  #count = 0;
  /** Those of `#count` that only the last report has shown. */
  #fresh = 0;
  #reportedAt: MonoMs | undefined;
  /** Times of closings heard since the last report's moment. */
  #closings: MonoMs[] = [];
  #shownSince: MonoMs | undefined;
  #shownMin = Infinity;

  /** Ends believed unheard. */
  get count(): number {
    return this.#count;
  }

  /** Takes a report; returns what it shows to be closed for good. */
  reported(comparison: Comparison): Overdue {
    const { at, reported, held, heldSurely } = comparison;
    if (this.#closings.length > 0) {
      this.#closings = this.#closings.filter((closedAt) => closedAt > at);
    }
    const least = Math.max(0, heldSurely - reported);
    // Those closed after the report's moment may or may not have run in it.
    const most = Math.max(least, held + this.#closings.length - reported);
    const before = this.#count;
    this.#count = Math.min(held, most, Math.max(least, before));
    this.#fresh = Math.max(0, this.#count - before);
    this.#reportedAt = at;
    return this.#overdue(at, least);
  }

  /** An end was heard; `held` reservations are left. */
  heard(now: MonoMs, held: number): void {
    if (this.#reportedAt === undefined) return;
    if (this.#closings.length < closingsKept) this.#closings.push(now);
    if (this.#fresh > 0 && now - this.#reportedAt <= recordLagMsMax) {
      this.#fresh--;
      this.#count--;
    }
    this.#count = Math.min(this.#count, held);
  }

  /** A reservation was given up without having been heard of. */
  gaveUp(): void {
    if (this.#count > 0) this.#count--;
  }

  /** What was reported means nothing any more. */
  reset(): void {
    this.#count = 0;
    this.#fresh = 0;
    this.#reportedAt = undefined;
    this.#closings = [];
    this.#shownSince = undefined;
    this.#shownMin = Infinity;
  }

  #overdue(at: MonoMs, least: number): Overdue {
    if (least === 0) {
      this.#shownSince = undefined;
      this.#shownMin = Infinity;
      return { count: 0, openedBefore: at };
    }
    const since = this.#shownSince ?? at;
    const shown = Math.min(this.#shownMin, least);
    if (at - since < closeAfterMs) {
      this.#shownSince = since;
      this.#shownMin = shown;
      return { count: 0, openedBefore: at };
    }
    const left = least - shown;
    this.#shownSince = left === 0 ? undefined : at;
    this.#shownMin = left === 0 ? Infinity : left;
    return { count: shown, openedBefore: monoMs(since - dispatchLagMsMax) };
  }
}
