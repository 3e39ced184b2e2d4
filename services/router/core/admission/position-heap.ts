/** How a heap orders its entries and where it notes their places. */
export interface HeapRules<T> {
  /** Whether `a` comes out before `b`; a strict total order, so that equal calls give equal results. */
  readonly before: (a: T, b: T) => boolean;
  /** The place last noted for an entry; −1 when it is not in the heap. */
  readonly place: (entry: T) => number;
  /** Notes an entry's place. */
  readonly setPlace: (entry: T, place: number) => void;
}

/**
 * Binary heap whose entries know their own place, so that any of them can be taken out or moved after a change.
 * O(log n) for each change. An entry may be in one heap per pair of place functions.
 */
export class PositionHeap<T> {
  readonly #rules: HeapRules<T>;
  readonly #entries: T[] = [];

  constructor(rules: HeapRules<T>) {
    this.#rules = rules;
  }

  /** Number of entries. */
  get size(): number {
    return this.#entries.length;
  }

  /** The first entry, or `undefined`. */
  get first(): T | undefined {
    return this.#entries[0];
  }

  /** All entries in no particular order; not to be changed. */
  get entries(): readonly T[] {
    return this.#entries;
  }

  /** Adds an entry that is not in the heap. */
  push(entry: T): void {
    this.#entries.push(entry);
    this.#up(this.#entries.length - 1, entry);
  }

  /** Takes an entry out; false when it is not in the heap. */
  remove(entry: T): boolean {
    const at = this.#rules.place(entry);
    if (at < 0) return false;
    this.#rules.setPlace(entry, -1);
    const last = this.#entries.pop() as T;
    if (last !== entry) this.#settle(at, last);
    return true;
  }

  /** Moves an entry whose order has changed; nothing when it is not in the heap. */
  moved(entry: T): void {
    const at = this.#rules.place(entry);
    if (at >= 0) this.#settle(at, entry);
  }

  #settle(at: number, entry: T): void {
    const parent = (at - 1) >>> 1;
    if (at > 0 && this.#rules.before(entry, this.#entries[parent] as T)) this.#up(at, entry);
    else this.#down(at, entry);
  }

  #up(from: number, entry: T): void {
    const entries = this.#entries;
    const { before, setPlace } = this.#rules;
    let at = from;
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      const above = entries[parent] as T;
      if (!before(entry, above)) break;
      entries[at] = above;
      setPlace(above, at);
      at = parent;
    }
    entries[at] = entry;
    setPlace(entry, at);
  }

  #down(from: number, entry: T): void {
    const entries = this.#entries;
    const { before, setPlace } = this.#rules;
    const count = entries.length;
    let at = from;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= count) break;
      if (child + 1 < count && before(entries[child + 1] as T, entries[child] as T)) child++;
      const below = entries[child] as T;
      if (!before(below, entry)) break;
      entries[at] = below;
      setPlace(below, at);
      at = child;
    }
    entries[at] = entry;
    setPlace(entry, at);
  }
}
