import type { WorkerId } from "../../../shared/core/ids.ts";

/** The rows of one pool's workers in the order of their ids. */
export class PoolRows {
  rows = new Int32Array(16);
  /** How many of the workers are ready; kept by who enters them. */
  readyCount = 0;
  /** Longest context that one of the workers takes, tokens; `undefined` until it is asked for after a change. */
  contextMax: number | undefined;
  readonly #ids: WorkerId[] = [];

  /** Number of workers. */
  get count(): number {
    return this.#ids.length;
  }

  /** Enters a worker that is not in it. O(count). */
  add(id: WorkerId, row: number): void {
    const { count } = this;
    if (count === this.rows.length) {
      const grown = new Int32Array(2 * count);
      grown.set(this.rows);
      this.rows = grown;
    }
    const at = this.#position(id);
    this.rows.copyWithin(at + 1, at, count);
    this.rows[at] = row;
    this.#ids.splice(at, 0, id);
    this.contextMax = undefined;
  }

  /** Takes a worker out that is in it. O(count). */
  remove(id: WorkerId): void {
    const at = this.#position(id);
    this.rows.copyWithin(at, at + 1, this.count);
    this.#ids.splice(at, 1);
    this.contextMax = undefined;
  }

  /** Where the id is or belongs. */
  #position(id: WorkerId): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ids[middle] as WorkerId) < id) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
