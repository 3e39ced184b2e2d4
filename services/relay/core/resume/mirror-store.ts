/** A stream of another relay, as far as it is kept here. */
export interface MirroredState {
  /** What the continuation needs beside the ids, see `mirror-state.ts`; empty until it came. */
  readonly head: Uint8Array;
  /** Ids of the tokens from index 0, 4 bytes each, low byte first. */
  readonly ids: Uint8Array;
}

interface Kept {
  head: Uint8Array;
  ids: Uint8Array;
  length: number;
  until: number;
}

const idBytes = 4;
/** What a stream costs beside its head and ids, bytes. */
const entryBytes = 64;
const idsBytesMin = 256;
const nothing = new Uint8Array(0);

/** Streams that other relays mirror here: bounded a stream, bounded in all, forgotten a while after their last growth. */
export class MirrorStore {
  readonly #streamBytesMax: number;
  readonly #bytesMax: number;
  readonly #keepMs: number;
  readonly #streams = new Map<string, Kept>();
  #bytes = 0;

  constructor(options: {
    readonly streamBytesMax: number;
    readonly bytesMax: number;
    readonly keepMs: number;
  }) {
    this.#streamBytesMax = options.streamBytesMax;
    this.#bytesMax = options.bytesMax;
    this.#keepMs = options.keepMs;
  }

  /** Bytes held. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Streams held. */
  get size(): number {
    return this.#streams.size;
  }

  /**
   * Takes growth of a stream: ids from an index on, and its head with the first one. Returns how many ids are held now;
   * -1, with the stream forgotten, when it is too large, there is no room, or ids before these are missing.
   */
  grow(
    key: string,
    growth: { readonly fromIndex: number; readonly ids: Uint8Array; readonly head: Uint8Array },
    now: number,
  ): number {
    const { fromIndex, ids, head } = growth;
    let kept = this.#streams.get(key);
    if (kept === undefined) {
      kept = { head: nothing, ids: nothing, length: 0, until: 0 };
      this.#streams.set(key, kept);
      this.#bytes += entryBytes;
    }
    const from = fromIndex * idBytes;
    const end = from + ids.length;
    const isFit = from <= kept.length && ids.length % idBytes === 0;
    const room = end > kept.ids.length ? Math.max(idsBytesMin, 2 * end) : kept.ids.length;
    const more = room - kept.ids.length + (head.length > 0 ? head.length - kept.head.length : 0);
    const tooLarge = end + Math.max(head.length, kept.head.length) > this.#streamBytesMax;
    if (!isFit || tooLarge || this.#bytes + more > this.#bytesMax) {
      this.remove(key);
      return -1;
    }
    if (head.length > 0) {
      this.#bytes += head.length - kept.head.length;
      kept.head = head.slice();
    }
    if (room > kept.ids.length) {
      const larger = new Uint8Array(room);
      larger.set(kept.ids.subarray(0, kept.length));
      this.#bytes += larger.length - kept.ids.length;
      kept.ids = larger;
    }
    kept.ids.set(ids, from);
    kept.length = Math.max(kept.length, end);
    kept.until = now + this.#keepMs;
    return kept.length / idBytes;
  }

  /** Hands a stream over and forgets it: whoever takes it first goes on with it. */
  take(key: string): MirroredState | undefined {
    const kept = this.#streams.get(key);
    if (kept === undefined) return undefined;
    this.remove(key);
    return { head: kept.head, ids: kept.ids.subarray(0, kept.length) };
  }

  remove(key: string): void {
    const kept = this.#streams.get(key);
    if (kept === undefined) return;
    this.#streams.delete(key);
    this.#bytes -= entryBytes + kept.head.length + kept.ids.length;
  }

  /** Forgets streams that have not grown for long. */
  expire(now: number): void {
    for (const [key, { until }] of this.#streams) if (until <= now) this.remove(key);
  }
}
