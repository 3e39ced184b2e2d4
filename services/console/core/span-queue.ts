import type { QueuedSpan } from "./span-record.ts";

/** Bounds of the queue between receivers and store. */
export interface SpanQueueLimits {
  /** Most spans waiting. */
  readonly spansMax: number;
  /** Most UTF-16 units of JSON waiting, which is about their bytes. */
  readonly bytesMax: number;
}

/**
 * Bounded FIFO between receivers and the store. A full queue refuses, so that senders are answered at once and
 * memory stays bounded while the disk is slow.
 */
export class SpanQueue {
  readonly #limits: SpanQueueLimits;
  #items: QueuedSpan[] = [];
  #head = 0;
  #bytes = 0;

  constructor(limits: SpanQueueLimits) {
    this.#limits = limits;
  }

  /** Spans waiting. */
  get size(): number {
    return this.#items.length - this.#head;
  }

  /** Units of JSON waiting. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Adds a span; `false` when either bound would be passed. */
  offer(span: QueuedSpan): boolean {
    if (
      this.size >= this.#limits.spansMax ||
      this.#bytes + span.json.length > this.#limits.bytesMax
    ) {
      return false;
    }
    this.#items.push(span);
    this.#bytes += span.json.length;
    return true;
  }

  /** Takes up to `max` spans, oldest first; empty when none wait. O(spans taken), amortised. */
  take(max: number): readonly QueuedSpan[] {
    const end = Math.min(this.#items.length, this.#head + max);
    const taken = this.#items.slice(this.#head, end);
    this.#head = end;
    for (const span of taken) this.#bytes -= span.json.length;
    // What was taken is let go once it is at least half of the array, so that each span is moved at most once.
    if (this.#head * 2 >= this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return taken;
  }
}
