/**
 * Finds the places of a ring by a text of what lies there: chains of places by the text's hash, in arrays that are made once.
 * Two maps of ten thousand texts, in which each request replaces the oldest entry, cost several microseconds a request in
 * memory that is touched no more often than that. Texts that share a hash make finding slower, nothing else.
 */
export class PlaceIndex {
  readonly #mask: number;
  /** Newest place + 1 of each chain; 0 for none. */
  readonly #heads: Int32Array;
  /** By place: the place + 1 that was entered before it, and the one after it. */
  readonly #older: Int32Array;
  readonly #newer: Int32Array;
  /** By place: the hash under which it is entered. */
  readonly #hashes: Int32Array;

  /** `places`: how many the ring has. */
  constructor(places: number) {
    let size = 16;
    while (size < 2 * places) size *= 2;
    this.#mask = size - 1;
    this.#heads = new Int32Array(size);
    this.#older = new Int32Array(places);
    this.#newer = new Int32Array(places);
    this.#hashes = new Int32Array(places);
  }

  /** Enters a place that is not entered. */
  add(place: number, text: string): void {
    const hash = hashOf(text);
    const chain = hash & this.#mask;
    const head = this.#heads[chain] as number;
    this.#hashes[place] = hash;
    this.#older[place] = head;
    this.#newer[place] = 0;
    if (head > 0) this.#newer[head - 1] = place + 1;
    this.#heads[chain] = place + 1;
  }

  /** Takes out a place that is entered. */
  remove(place: number): void {
    const older = this.#older[place] as number;
    const newer = this.#newer[place] as number;
    if (older > 0) this.#newer[older - 1] = newer;
    if (newer > 0) this.#older[newer - 1] = older;
    else this.#heads[(this.#hashes[place] as number) & this.#mask] = older;
  }

  /** The place entered last for which `holds`, of those whose text may be this one; −1 for none. */
  find(text: string, holds: (place: number) => boolean): number {
    const hash = hashOf(text);
    let at = this.#heads[hash & this.#mask] as number;
    for (; at > 0; at = this.#older[at - 1] as number) {
      if (this.#hashes[at - 1] === hash && holds(at - 1)) return at - 1;
    }
    return -1;
  }
}

/** FNV-1a over UTF-16 units. */
function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash ^ (hash >>> 15);
}
