import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { hashBlocks, hashRoot } from "../../services/shared/core/block-hash.ts";
import { BlockMap, type MeshBlockSink } from "../../services/worker/core/block-map.ts";
import type { ExtraKey, StoredEvent } from "../../services/worker/core/kv-events/kv-event.ts";

const seed = new Uint8Array(32).fill(7);
const model = "tiny";
const engineBlock = 4;

/**
 * A universe of prompts as an engine sees them: node i extends its parent by one engine block. The engine
 * hash is a function of the node, as an engine's is of the chain.
 */
interface Node {
  readonly index: number;
  readonly parent: number | undefined;
  readonly tokens: readonly number[];
  readonly scope: number;
}

/** What a chain is about: plain, adapter, salt, both, or with media on its first block. */
const scopes = [
  { lora: undefined, salt: undefined, media: false },
  { lora: "adapter", salt: undefined, media: false },
  { lora: undefined, salt: "tenant", media: false },
  { lora: "adapter", salt: "adapter", media: false },
  { lora: undefined, salt: undefined, media: true },
] as const;

function buildNodes(shape: readonly { back: number; token: number; scope: number }[]): Node[] {
  const nodes: Node[] = [];
  for (const { back, token, scope } of shape) {
    const index = nodes.length;
    // 0 starts a sequence; small steps back make long chains with many forks inside a mesh block.
    const from = back === 0 ? undefined : nodes[index - back];
    nodes.push({
      index,
      parent: from?.index,
      // Few different tokens, so that equal blocks appear under different parents and scopes.
      tokens: Array.from({ length: engineBlock }, (_, i) => (token + i) % 3),
      scope: from?.scope ?? scope,
    });
  }
  return nodes;
}

/** Engine hash of a node: both halves in use, the sign bit too. */
function engineHash(node: Node): readonly [number, number] {
  return [(node.index * 0x9e37_79b1) >>> 0, (0xffff_ffff - node.index * 3) >>> 0];
}

function chainOf(nodes: readonly Node[], node: Node): Node[] {
  const chain: Node[] = [];
  for (let at: Node | undefined = node; at !== undefined;) {
    chain.unshift(at);
    at = at.parent === undefined ? undefined : nodes[at.parent];
  }
  return chain;
}

const key = (lo: number, hi: number): string => `${String(hi)}:${String(lo)}`;

/** The set of mesh hashes that follows from a set of present nodes, by the definition alone. */
function expectedHashes(
  nodes: readonly Node[],
  present: ReadonlySet<number>,
  k: number,
): Set<string> {
  const out = new Set<string>();
  for (const node of nodes) {
    const chain = chainOf(nodes, node);
    const scope = scopes[node.scope];
    if (chain.length % k !== 0 || scope === undefined || scope.media) continue;
    if (!chain.slice(-k).every((member) => present.has(member.index))) continue;
    const root = hashRoot(seed, {
      model,
      ...(scope.lora === undefined ? {} : { lora: scope.lora }),
      ...(scope.salt === undefined ? {} : { salt: scope.salt }),
    });
    const ids = chain.flatMap((member) => member.tokens);
    const hashes = hashBlocks(root, ids, engineBlock * k);
    out.add(key(hashes.at(-2) ?? 0, hashes.at(-1) ?? 0));
  }
  return out;
}

class SetSink implements MeshBlockSink {
  readonly held = new Set<string>();

  stored(lo: number, hi: number): void {
    expect(this.held.has(key(lo, hi))).toBe(false);
    this.held.add(key(lo, hi));
  }

  removed(lo: number, hi: number): void {
    expect(this.held.delete(key(lo, hi))).toBe(true);
  }

  cleared(): void {
    expect(this.held.size).toBeGreaterThan(0);
    this.held.clear();
  }
}

function storedEvent(nodes: readonly Node[], run: readonly Node[]): StoredEvent {
  const first = run[0];
  const parent = first?.parent === undefined ? undefined : nodes[first.parent];
  const [parentLo, parentHi] = parent === undefined ? [0, 0] : engineHash(parent);
  const scope = scopes[first?.scope ?? 0] ?? scopes[0];
  const extras = run.map((node): readonly ExtraKey[] | undefined => {
    const keys: ExtraKey[] = [];
    if (scope.lora !== undefined) keys.push({ kind: "text", text: scope.lora });
    if (scope.media && node.parent === undefined) keys.push({ kind: "media", id: "picture" });
    if (scope.salt !== undefined && node.parent === undefined) {
      keys.push({ kind: "text", text: scope.salt });
    }
    return keys.length === 0 ? undefined : keys;
  });
  return {
    kind: "stored",
    hashes: Uint32Array.from(run.flatMap((node) => engineHash(node))),
    hasParent: parent !== undefined,
    parentLo,
    parentHi,
    tokens: Uint32Array.from(run.flatMap((node) => node.tokens)),
    blockSizeTokens: engineBlock,
    bigram: false,
    loraId: scope.lora === undefined ? undefined : 1,
    loraName: scope.lora,
    medium: "GPU",
    locality: undefined,
    extraKeys: extras.every((entry) => entry === undefined) ? undefined : extras,
    groupIndex: 0,
    specKind: "full_attention",
  };
}

const shapeOfNodes = fc.array(
  fc.record({
    back: fc.constantFrom(0, 1, 1, 1, 1, 2, 2, 3, 4, 7),
    token: fc.nat(2),
    scope: fc.constantFrom(0, 0, 0, 1, 2, 3, 4),
  }),
  { minLength: 1, maxLength: 40, size: "max" },
);

const steps = fc.array(
  fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ do: fc.constant("store" as const), node: fc.nat(60), run: fc.nat(6) }),
    },
    {
      weight: 5,
      arbitrary: fc.record({
        do: fc.constant("remove" as const),
        node: fc.nat(60),
        run: fc.nat(3),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ do: fc.constant("clear" as const), node: fc.nat(0), run: fc.nat(0) }),
    },
  ),
  { maxLength: 120, size: "max" },
);

describe.each([1, 2, 4])("BlockMap with %i engine blocks per mesh block", (k) => {
  const makeMap = (sink: MeshBlockSink, engineBlocksMax = 10_000): BlockMap =>
    new BlockMap({
      engineBlockSizeTokens: engineBlock,
      meshBlockSizeTokens: engineBlock * k,
      engineBlocksMax,
      hashSeed: seed,
      model,
      sink,
    });

  test("holds exactly the mesh blocks whose engine blocks are all present, whatever the order of events", () => {
    fc.assert(
      fc.property(shapeOfNodes, steps, (shape, script) => {
        const nodes = buildNodes(shape);
        const present = new Set<number>();
        const sink = new SetSink();
        const map = makeMap(sink);
        for (const step of script) {
          const node = nodes[step.node % nodes.length];
          if (node === undefined) continue;
          if (step.do === "clear") {
            present.clear();
            map.apply({ kind: "cleared" });
          } else if (step.do === "remove") {
            const run = chainOf(nodes, node).slice(-1 - step.run);
            for (const member of run) present.delete(member.index);
            map.apply({
              kind: "removed",
              hashes: Uint32Array.from(run.flatMap((member) => engineHash(member))),
              medium: "GPU",
              locality: undefined,
              groupIndex: 0,
            });
          } else {
            const run = chainOf(nodes, node).slice(-1 - step.run);
            const parent = run[0]?.parent;
            // A block whose parent is not held is an orphan: the map must leave it out.
            if (parent === undefined || present.has(parent)) {
              for (const member of run) present.add(member.index);
            }
            map.apply(storedEvent(nodes, run));
          }
          const expected = expectedHashes(nodes, present, k);
          expect(sink.held).toEqual(expected);
          expect(map.meshBlockCount).toBe(expected.size);
          expect(map.engineBlockCount).toBe(present.size);
        }
        const snapshot = new Set<string>();
        const hashes = map.meshHashes();
        for (let i = 0; i < hashes.length; i += 2)
          snapshot.add(key(hashes[i] ?? 0, hashes[i + 1] ?? 0));
        expect(snapshot).toEqual(sink.held);

        // With the last block of every chain gone nothing is remembered, and all of it can come back.
        const removeAll = (list: readonly Node[]): void => {
          for (const node of list) {
            const hashes = Uint32Array.from(engineHash(node));
            map.apply({
              kind: "removed",
              hashes,
              medium: "GPU",
              locality: undefined,
              groupIndex: 0,
            });
          }
        };
        removeAll(nodes);
        expect(map.rememberedCount).toBe(0);
        for (const node of nodes) map.apply(storedEvent(nodes, [node]));
        const all = new Set(nodes.map((node) => node.index));
        expect(sink.held).toEqual(expectedHashes(nodes, all, k));
        removeAll(nodes.toReversed());
        expect(map.rememberedCount).toBe(0);
      }),
      { numRuns: 400 },
    );
  });

  test("stays consistent and bounded under events that contradict each other", () => {
    const pair = fc.nat(12);
    const event = fc.oneof(
      fc.record({
        kind: fc.constant("removed" as const),
        at: pair,
        count: fc.nat(3),
        parent: pair,
        token: fc.nat(2),
        lora: fc.boolean(),
      }),
      fc.record({
        kind: fc.constant("stored" as const),
        at: pair,
        count: fc.nat(5),
        parent: fc.nat(14),
        token: fc.nat(2),
        lora: fc.boolean(),
      }),
    );
    fc.assert(
      fc.property(fc.array(event, { maxLength: 150, size: "max" }), (events) => {
        const sink = new SetSink();
        const map = makeMap(sink, 16);
        for (const { kind, at, count, parent, token, lora } of events) {
          const hashes = Uint32Array.from({ length: 2 * count }, (_, i) => (at + (i >> 1)) % 13);
          if (kind === "removed") {
            map.apply({
              kind,
              hashes,
              medium: undefined,
              locality: undefined,
              groupIndex: undefined,
            });
          } else {
            map.apply({
              kind,
              hashes,
              hasParent: parent < 12,
              parentLo: parent,
              parentHi: parent,
              tokens: new Uint32Array(engineBlock * count).fill(token),
              blockSizeTokens: engineBlock,
              bigram: false,
              loraId: undefined,
              loraName: lora ? "adapter" : undefined,
              medium: undefined,
              locality: undefined,
              extraKeys: undefined,
              groupIndex: undefined,
              specKind: undefined,
            });
          }
          expect(map.meshBlockCount).toBe(sink.held.size);
          expect(map.engineBlockCount).toBeLessThanOrEqual(16);
        }
        map.forget();
        expect(sink.held.size).toBe(0);
        expect(map.engineBlockCount).toBe(0);
      }),
      { numRuns: 400 },
    );
  });
});
