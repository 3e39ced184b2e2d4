import { describe, expect, test } from "vitest";

import { promptHashes } from "../../../../test/support/router-builders.ts";
import { BlockFeed, type BlockChange, type SnapshotPart } from "./block-feed.ts";

const none = new Uint32Array(0);

function setup(blocksMax = 1_000) {
  const held = new Set<string>();
  const each = (hashes: Uint32Array, take: (key: string) => unknown): void => {
    for (let i = 0; i < hashes.length; i += 2)
      take(`${String(hashes[i])}.${String(hashes[i + 1])}`);
  };
  const feed = new BlockFeed({
    blocksMax,
    sink: {
      store: (hashes) => {
        each(hashes, (key) => held.add(key));
      },
      remove: (hashes) => {
        each(hashes, (key) => held.delete(key));
      },
      clear: () => {
        held.clear();
      },
    },
  });
  return { feed, held };
}

const change = (seq: number, over: Partial<BlockChange> = {}): BlockChange => ({
  seq,
  cleared: false,
  removed: none,
  stored: none,
  ...over,
});

/** The parts of a snapshot with its right digest. */
function snapshot(baseSeq: number, parts: readonly Uint32Array[]): SnapshotPart[] {
  let xorLo = 0;
  let xorHi = 0;
  let blockCount = 0;
  for (const part of parts) {
    for (let i = 0; i < part.length; i += 2) {
      xorLo ^= part[i] as number;
      xorHi ^= part[i + 1] as number;
      blockCount++;
    }
  }
  return parts.map((hashes, i) => {
    const last = i === parts.length - 1;
    return last
      ? { baseSeq, hashes, last, xorLo: xorLo >>> 0, xorHi: xorHi >>> 0, blockCount }
      : { baseSeq, hashes, last, xorLo: 0, xorHi: 0, blockCount: 0 };
  });
}

describe("BlockFeed", () => {
  test("a snapshot replaces everything when its last part is there, not before", () => {
    const { feed, held } = setup();
    for (const part of snapshot(0, [promptHashes(1, 3)])) feed.snapshot(part);
    const [first, second] = snapshot(7, [promptHashes(2, 4), promptHashes(3, 2)]) as [
      SnapshotPart,
      SnapshotPart,
    ];
    expect(feed.snapshot(first)).toEqual({ kind: "buffered" });
    expect([held.size, feed.synced]).toEqual([3, true]);
    expect(feed.snapshot(second)).toEqual({ kind: "applied" });
    expect([held.size, feed.synced, feed.appliedSeq]).toEqual([6, true, 7]);
  });

  test("an empty snapshot is one", () => {
    const { feed } = setup();
    expect(feed.snapshot(snapshot(0, [none])[0] as SnapshotPart)).toEqual({ kind: "applied" });
    expect(feed.synced).toBe(true);
  });

  test("deltas between the parts of a snapshot build on it", () => {
    const { feed, held } = setup();
    const [first, second] = snapshot(3, [promptHashes(1, 2), promptHashes(2, 2)]) as [
      SnapshotPart,
      SnapshotPart,
    ];
    feed.snapshot(first);
    expect(feed.delta(change(4, { removed: promptHashes(2, 1) }))).toEqual({ kind: "buffered" });
    expect(feed.delta(change(5, { stored: promptHashes(9, 5) }))).toEqual({ kind: "buffered" });
    feed.snapshot(second);
    expect([held.size, feed.appliedSeq, feed.synced]).toEqual([8, 5, true]);
  });

  test("a gap asks once for a snapshot, keeps what is known and goes on taking deltas", () => {
    const { feed, held } = setup();
    for (const part of snapshot(0, [promptHashes(1, 3)])) feed.snapshot(part);
    expect(feed.delta(change(2, { stored: promptHashes(2, 2) }))).toEqual({
      kind: "resync",
      reason: "gap",
    });
    expect(feed.synced).toBe(false);
    expect(feed.delta(change(3, { stored: promptHashes(3, 1) }))).toEqual({ kind: "buffered" });
    expect(held.size).toBe(6);
    for (const part of snapshot(3, [promptHashes(4, 1)])) feed.snapshot(part);
    expect([held.size, feed.synced]).toEqual([1, true]);
    expect(feed.delta(change(4))).toEqual({ kind: "applied" });
  });

  test("a delta before any snapshot asks for one", () => {
    const { feed } = setup();
    expect(feed.delta(change(1))).toEqual({ kind: "resync", reason: "gap" });
  });

  test("a delta that was seen before is applied once", () => {
    const { feed, held } = setup();
    for (const part of snapshot(0, [none])) feed.snapshot(part);
    feed.delta(change(1, { stored: promptHashes(1, 2) }));
    feed.delta(change(2, { removed: promptHashes(1, 2) }));
    expect(feed.delta(change(1, { stored: promptHashes(1, 2) }))).toEqual({ kind: "applied" });
    expect([held.size, feed.appliedSeq]).toEqual([0, 2]);
  });

  test.each([
    ["digest", { xorLo: 1 }],
    ["upper half of the digest", { xorHi: 1 }],
    ["count", { blockCount: 99 }],
  ])(
    "a snapshot with a wrong %s is not applied and is asked for again, each time",
    (_name, wrong) => {
      const { feed, held } = setup();
      for (const part of snapshot(0, [promptHashes(1, 3)])) feed.snapshot(part);
      for (let i = 0; i < 3; i++) {
        const [part] = snapshot(5, [promptHashes(2, 4)]) as [SnapshotPart];
        expect(feed.snapshot({ ...part, ...wrong })).toEqual({ kind: "resync", reason: "digest" });
        expect([held.size, feed.synced]).toEqual([3, false]);
      }
    },
  );

  test("a snapshot larger than the engine's cache can be is refused before it is whole", () => {
    const { feed, held } = setup(5);
    const [first, second] = snapshot(1, [promptHashes(1, 4), promptHashes(2, 4)]) as [
      SnapshotPart,
      SnapshotPart,
    ];
    feed.snapshot(first);
    expect(feed.snapshot(second)).toEqual({ kind: "resync", reason: "digest" });
    expect(held.size).toBe(0);
  });

  test("another snapshot in the middle of one starts anew", () => {
    const { feed, held } = setup();
    feed.snapshot(snapshot(3, [promptHashes(1, 2), promptHashes(2, 2)])[0] as SnapshotPart);
    for (const part of snapshot(8, [promptHashes(3, 5)])) feed.snapshot(part);
    expect([held.size, feed.appliedSeq]).toEqual([5, 8]);
  });

  test("too many deltas during one snapshot ask for another", () => {
    const { feed } = setup();
    feed.snapshot(snapshot(0, [promptHashes(1, 2), none])[0] as SnapshotPart);
    for (let seq = 1; seq <= 4_096; seq++) feed.delta(change(seq));
    expect(feed.delta(change(4_097))).toEqual({ kind: "resync", reason: "gap" });
  });

  test("clears before it removes and stores", () => {
    const { feed, held } = setup();
    for (const part of snapshot(0, [promptHashes(1, 3)])) feed.snapshot(part);
    feed.delta(
      change(1, { cleared: true, removed: promptHashes(1, 1), stored: promptHashes(1, 2) }),
    );
    expect(held.size).toBe(2);
  });
});
