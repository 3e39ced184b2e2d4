import { invariant } from "../../../shared/core/invariant.ts";
import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";

interface Entry {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
}

/**
 * A clock that moves only from event to event. Events at one time run in the order in which they were
 * planned, so that a run depends on nothing but its inputs. O(log n) per event.
 */
export class VirtualTime {
  readonly #heap: Entry[] = [];
  #now = 0;
  #order = 0;
  #ran = 0;

  /** The time now, ms from the start of the run. */
  get now(): MonoMs {
    return monoMs(this.#now);
  }

  /** Events run so far. */
  get eventCount(): number {
    return this.#ran;
  }

  /** Plans an event; a time that has passed means now. */
  at(time: number, run: () => void): void {
    invariant(Number.isFinite(time), "an event needs a finite time");
    const entry = { at: Math.max(time, this.#now), order: this.#order++, run };
    const heap = this.#heap;
    let child = heap.length;
    heap.push(entry);
    while (child > 0) {
      const parent = (child - 1) >>> 1;
      const above = heap[parent] as Entry;
      if (!isBefore(entry, above)) break;
      heap[child] = above;
      child = parent;
    }
    heap[child] = entry;
  }

  /** Plans an event `ms` from now. */
  after(ms: number, run: () => void): void {
    this.at(this.#now + ms, run);
  }

  /** Runs everything due by `time`, calling `afterEach` behind every event, and moves the clock there. */
  runUntil(time: number, afterEach?: () => void): void {
    for (
      let first = this.#heap[0];
      first !== undefined && first.at <= time;
      first = this.#heap[0]
    ) {
      this.#pop();
      this.#now = first.at;
      this.#ran++;
      first.run();
      afterEach?.();
    }
    this.#now = Math.max(this.#now, time);
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop() as Entry;
    const count = heap.length;
    if (count === 0) return;
    let hole = 0;
    for (;;) {
      let child = 2 * hole + 1;
      if (child >= count) break;
      if (child + 1 < count && isBefore(heap[child + 1] as Entry, heap[child] as Entry)) child++;
      const below = heap[child] as Entry;
      if (!isBefore(below, last)) break;
      heap[hole] = below;
      hole = child;
    }
    heap[hole] = last;
  }
}

function isBefore(a: Entry, b: Entry): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
