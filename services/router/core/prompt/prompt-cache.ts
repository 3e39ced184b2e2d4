import type { ScannedText, ScannedValue } from "../openai/scanned-body.ts";
import { PromptText, type TextAccount } from "./prompt-text.ts";

/** Memory of an entry beside what it holds, bytes; an estimate. */
const entryBytes = 400;

/** A text or value that has been seen, in a list from the one used last to the one used longest ago. */
class CacheEntry implements TextAccount {
  readonly cache: PromptCache;
  readonly key: number;
  readonly hi: number;
  readonly check: number;
  readonly size: number;
  readonly domain: number;
  cost = entryBytes;
  newer: CacheEntry | undefined;
  older: CacheEntry | undefined;
  held = true;
  text: PromptText | undefined;
  value: unknown;

  constructor(cache: PromptCache, key: number, of: Hashed, domain: number) {
    this.cache = cache;
    this.key = key;
    this.hi = of.hi;
    this.check = of.check;
    this.size = of.end - of.start;
    this.domain = domain;
  }

  grow(bytes: number): void {
    this.cost += bytes;
    if (this.held) this.cache.grown(bytes);
  }
}

type Hashed = ScannedText | ScannedValue;

/** What a cache has done so far. */
export interface PromptCacheFigures {
  readonly entries: number;
  readonly bytes: number;
  readonly hits: number;
  readonly misses: number;
  readonly evicted: number;
}

/**
 * Texts and values of earlier requests with what is known about them: their tokens and what templates asked of them.
 * Found by a keyed hash of 96 bits and their length, so that two of a billion different ones are taken for each other with a
 * chance below 10⁻¹⁰; the consequence is a wrong guess about what a worker has cached. Holds `bytesMax` at most, by
 * estimate; those used longest ago go first.
 */
export class PromptCache {
  readonly #bytesMax: number;
  readonly #entries = new Map<number, CacheEntry>();
  #newest: CacheEntry | undefined;
  #oldest: CacheEntry | undefined;
  #bytes = 0;
  #hits = 0;
  #misses = 0;
  #evicted = 0;

  constructor(options: { readonly bytesMax: number }) {
    this.#bytesMax = options.bytesMax;
  }

  get figures(): PromptCacheFigures {
    return {
      entries: this.#entries.size,
      bytes: this.#bytes,
      hits: this.#hits,
      misses: this.#misses,
      evicted: this.#evicted,
    };
  }

  /** The text spelled at `of` in a body, not bound to it. Texts of different domains are different ones. */
  text(of: ScannedText, domain: number): PromptText {
    const entry = this.#entry(of, domain);
    return (entry.text ??= PromptText.of(entry));
  }

  /** What `make` makes of the value at `of`; made once. `make` also says how many bytes that takes, by estimate. */
  value<T>(
    of: Hashed,
    domain: number,
    make: () => { readonly value: T; readonly bytes: number },
  ): T {
    const entry = this.#entry(of, domain);
    if (entry.value === undefined) {
      const { value, bytes } = make();
      entry.value = value;
      entry.grow(bytes);
    }
    return entry.value as T;
  }

  /** Called by entries that have grown. */
  grown(bytes: number): void {
    this.#bytes += bytes;
  }

  /** Makes room. Called between requests, so that no entry in use goes. */
  trim(): void {
    while (this.#bytes > this.#bytesMax && this.#oldest !== undefined) {
      this.#evicted++;
      this.#remove(this.#oldest);
    }
  }

  #entry(of: Hashed, domain: number): CacheEntry {
    const lo = (of.lo ^ Math.imul(domain, 0x9e3779b1)) >>> 0;
    const key = lo + (of.hi & 0x1fffff) * 2 ** 32;
    const found = this.#entries.get(key);
    if (
      found?.hi === of.hi &&
      found.check === of.check &&
      found.size === of.end - of.start &&
      found.domain === domain
    ) {
      this.#hits++;
      if (found !== this.#newest) {
        this.#unlink(found);
        this.#link(found);
      }
      return found;
    }
    this.#misses++;
    if (found !== undefined) this.#remove(found);
    const entry = new CacheEntry(this, key, of, domain);
    this.#entries.set(key, entry);
    this.#link(entry);
    this.#bytes += entry.cost;
    return entry;
  }

  #remove(entry: CacheEntry): void {
    this.#entries.delete(entry.key);
    this.#unlink(entry);
    this.#bytes -= entry.cost;
    entry.held = false;
  }

  #link(entry: CacheEntry): void {
    entry.older = this.#newest;
    entry.newer = undefined;
    if (this.#newest === undefined) this.#oldest = entry;
    else this.#newest.newer = entry;
    this.#newest = entry;
  }

  #unlink(entry: CacheEntry): void {
    if (entry.newer === undefined) this.#newest = entry.older;
    else entry.newer.older = entry.older;
    if (entry.older === undefined) this.#oldest = entry.newer;
    else entry.older.newer = entry.newer;
  }
}
