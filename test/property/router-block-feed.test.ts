import fc from "fast-check";
import { describe, expect, test } from "vitest";

import {
  BlockFeed,
  type BlockChange,
  type FeedOutcome,
  type SnapshotPart,
} from "../../services/router/core/membership/block-feed.ts";

const pairs = (blocks: Iterable<number>): Uint32Array =>
  Uint32Array.from([...blocks].flatMap((b) => [Math.imul(b + 1, 0x9e3779b1) >>> 0, b]));

/** A worker that numbers its changes and can send its blocks as a snapshot in parts. */
class NaiveWorker {
  readonly blocks = new Set<number>();
  /** The blocks after each change. */
  readonly history: ReadonlySet<number>[] = [new Set()];
  seq = 0;

  change(step: {
    cleared: boolean;
    stored: readonly number[];
    removed: readonly number[];
  }): BlockChange {
    if (step.cleared) this.blocks.clear();
    for (const b of step.removed) this.blocks.delete(b);
    for (const b of step.stored) this.blocks.add(b);
    this.history.push(new Set(this.blocks));
    return {
      seq: ++this.seq,
      cleared: step.cleared,
      removed: pairs(step.removed),
      stored: pairs(step.stored),
    };
  }

  snapshot(partBlocks: number): SnapshotPart[] {
    const all = [...this.blocks];
    const parts: SnapshotPart[] = [];
    const hashes = pairs(all);
    let xorLo = 0;
    let xorHi = 0;
    for (let i = 0; i < hashes.length; i += 2) {
      xorLo ^= hashes[i] as number;
      xorHi ^= hashes[i + 1] as number;
    }
    const digest = { xorLo: xorLo >>> 0, xorHi: xorHi >>> 0, blockCount: all.length };
    for (let from = 0; from === 0 || from < all.length; from += partBlocks) {
      const last = from + partBlocks >= all.length;
      parts.push({
        baseSeq: this.seq,
        hashes: pairs(all.slice(from, from + partBlocks)),
        last,
        ...digest,
      });
    }
    return parts;
  }
}

const step = fc.record({
  cleared: fc.integer({ min: 0, max: 19 }).map((n) => n === 0),
  stored: fc.array(fc.nat(40), { maxLength: 8 }),
  removed: fc.array(fc.nat(40), { maxLength: 8 }),
  /** The change never reaches the router, or reaches it twice. */
  fate: fc.oneof(
    { weight: 12, arbitrary: fc.constant("sent" as const) },
    { weight: 1, arbitrary: fc.constant("lost" as const) },
    { weight: 1, arbitrary: fc.constant("twice" as const) },
  ),
  /** The next snapshot is damaged on the way. */
  damaged: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
  /** Steps that the worker takes to answer a request for a snapshot. */
  answerAfter: fc.nat(4),
});

describe("BlockFeed beside a worker's own set of blocks", () => {
  test("holds exactly the worker's blocks whenever it says that it is in step, and always gets there", () => {
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 80 }),
        fc.integer({ min: 1, max: 9 }),
        (steps, partBlocks) => {
          const worker = new NaiveWorker();
          const held = new Set<number>();
          const feed = new BlockFeed({
            blocksMax: 1_000,
            sink: {
              store: (hashes) => {
                for (let i = 1; i < hashes.length; i += 2) held.add(hashes[i] as number);
              },
              remove: (hashes) => {
                for (let i = 1; i < hashes.length; i += 2) held.delete(hashes[i] as number);
              },
              clear: () => {
                held.clear();
              },
            },
          });
          let askedIn: number | undefined = 0;
          let parts: SnapshotPart[] = [];
          let resyncs = 0;
          const take = (outcome: FeedOutcome, answerAfter: number): void => {
            if (outcome.kind !== "resync") return;
            resyncs++;
            // The worker gives up a snapshot that it is sending when it is asked for another.
            parts = [];
            askedIn = answerAfter;
          };
          const sendParts = (count: number, damaged: boolean, answerAfter: number): void => {
            for (let n = 0; n < count && parts.length > 0; n++) {
              const part = parts.shift() as SnapshotPart;
              take(feed.snapshot(damaged ? { ...part, xorLo: part.xorLo ^ 1 } : part), answerAfter);
            }
          };
          const check = (): void => {
            if (!feed.synced || parts.length > 0) return;
            expect(held).toEqual(worker.history[feed.appliedSeq]);
          };
          for (const s of steps) {
            if (askedIn !== undefined && askedIn-- <= 0) {
              askedIn = undefined;
              parts = worker.snapshot(partBlocks);
            }
            sendParts(2, s.damaged, s.answerAfter);
            const change = worker.change(s);
            const copies = { sent: 1, lost: 0, twice: 2 }[s.fate];
            for (let n = 0; n < copies; n++) take(feed.delta(change), s.answerAfter);
            check();
          }
          // Healing: nothing is lost any more.
          for (
            let n = 0;
            n < 400 && !(feed.synced && parts.length === 0 && feed.appliedSeq === worker.seq);
            n++
          ) {
            if (askedIn !== undefined && askedIn-- <= 0) {
              askedIn = undefined;
              parts = worker.snapshot(partBlocks);
            }
            sendParts(3, false, 1);
            if (parts.length === 0 && askedIn === undefined) {
              take(feed.delta(worker.change({ cleared: false, stored: [n], removed: [] })), 1);
            }
            check();
          }
          expect(feed.synced).toBe(true);
          expect(held).toEqual(worker.blocks);
          expect(resyncs).toBeLessThanOrEqual(2 * steps.length + 2);
        },
      ),
      { numRuns: 500 },
    );
  });
});
