import { wasm as w, wasmTypes, type Code, type WasmFunction } from "../wasm/wasm-assembler.ts";
import { idBits, noRank, type MergeTables } from "./pair-merger.ts";

/** Longest word that is merged, bytes. */
export const mergedSizeMax = 31;

const numberSize = 4;
/** Numbers behind the longest word's, which vectors read and write too. */
const spare = 8;
const scratchSize = numberSize * (mergedSizeMax + 1 + spare);

/** Where merging has its tables and its scratch, and where they end. */
export interface MergeLayout {
  /** Symbols of the word at hand, and the ranks of the pairs that they begin. */
  readonly ids: number;
  readonly ranks: number;
  /** How many words have been merged; how many may be before a run stops at the next one. */
  readonly count: number;
  readonly limit: number;
  readonly byteIds: number;
  readonly bytePairRanks: number;
  readonly filter: number;
  readonly merged: number;
  readonly pairs: number;
  /** Entries of `pairs`, a power of two. */
  readonly pairsCapacity: number;
  readonly end: number;
}

/** Where tables go behind an address that is a multiple of sixteen. */
export function mergeLayout(at: number, tables: MergeTables): MergeLayout {
  const aligned = (place: number): number => (place + 15) & ~15;
  const byteIds = at + 2 * scratchSize + 16;
  const bytePairRanks = aligned(byteIds + tables.byteIds.byteLength);
  const filter = aligned(bytePairRanks + tables.bytePairRanks.byteLength);
  const merged = aligned(filter + tables.filter.byteLength);
  const pairs = aligned(merged + tables.merged.byteLength);
  return {
    ids: at,
    ranks: at + scratchSize,
    count: at + 2 * scratchSize,
    limit: at + 2 * scratchSize + numberSize,
    ...{ byteIds, bytePairRanks, filter, merged, pairs },
    end: aligned(pairs + tables.pairs.byteLength),
    pairsCapacity: tables.pairs.length / 2,
  };
}

/** Copies tables to where a module looks for them. */
export function putMergeTables(memory: ArrayBuffer, layout: MergeLayout, t: MergeTables): void {
  new Uint32Array(memory, layout.byteIds, t.byteIds.length).set(t.byteIds);
  for (const name of ["bytePairRanks", "filter", "merged", "pairs"] as const) {
    new Int32Array(memory, layout[name], t[name].length).set(t[name]);
  }
}

const g = w.get;
const times4 = (value: Code): Code => w.shl(value, w.i32(2));
const { i32, v128 } = wasmTypes;

/** Sets a local to the hash of a pair of ids, as `PairMerger` has it. */
function hashPair(hash: number, left: Code, right: Code): Code {
  const shifted = (by: number): Code => w.set(hash, w.xor(g(hash), w.shrU(g(hash), w.i32(by))));
  return [
    ...w.set(
      hash,
      w.xor(
        w.mul(w.xor(left, w.i32(0x2545f491)), w.i32(0x9e3779b1 | 0)),
        w.mul(right, w.i32(0x85ebca77 | 0)),
      ),
    ),
    ...shifted(15),
    ...w.set(hash, w.mul(g(hash), w.i32(0x2c1b3c6d))),
    ...shifted(13),
  ];
}

/** Offset in `pairs` of the entry that a hash leads to. */
const entryOf = (hash: number, { pairsCapacity }: MergeLayout): Code =>
  w.shl(w.and(g(hash), w.i32(pairsCapacity - 1)), w.i32(3));

/** `rank(left, right, hash)`: the rank of a pair of ids with this hash, as `PairMerger` finds it. Locals: 3 place, 4 and 5 an entry. */
function rankFunction(layout: MergeLayout): WasmFunction {
  const idMask = w.i32((1 << idBits) - 1);
  return {
    name: "rank",
    parameters: 3,
    locals: [i32, i32, i32],
    body: [
      ...w.if(
        w.eqz(
          w.and(
            w.shrU(
              w.load32(times4(w.shrU(g(2), w.i32(17))), layout.filter),
              w.shrU(g(2), w.i32(12)),
            ),
            w.i32(1),
          ),
        ),
        w.return(w.i32(noRank)),
      ),
      ...w.loop(
        w.set(3, entryOf(2, layout)),
        w.set(4, w.load32(g(3), layout.pairs)),
        w.set(5, w.load32(g(3), layout.pairs + numberSize)),
        w.if(w.eqz(w.or(g(4), g(5))), w.return(w.i32(noRank))),
        w.if(
          w.and(w.eq(w.and(g(4), idMask), g(0)), w.eq(w.and(g(5), idMask), g(1))),
          w.return(
            w.sub(
              w.or(
                w.shrU(g(4), w.i32(idBits)),
                w.shl(w.shrU(g(5), w.i32(idBits)), w.i32(32 - idBits)),
              ),
              w.i32(1),
            ),
          ),
        ),
        w.set(2, w.add(g(2), w.i32(1))),
        w.br(0),
      ),
      ...w.i32(-1),
    ],
  };
}

/** Locals of `merge`. */
const from = 0;
const size = 1;
const out = 2;
const i = 3;
const byte = 4;
const next = 5;
const best = 6;
const lowest = 7;
const merged = 8;
const first = 9;
const second = 10;
const least = 11;

/** Runs code with `i` going in steps of sixteen bytes from `start` until it has reached `end`, at least once. */
const eachFour = (start: Code, end: Code, ...code: readonly Code[]): Code => [
  ...w.set(i, start),
  ...w.loop(...code, w.set(i, w.add(g(i), w.i32(16))), w.brIf(0, w.ltS(g(i), end))),
];

/**
 * `merge(from, size, out)`: the tokens of a word of up to `mergedSizeMax` bytes, as `PairMerger` finds them; returns how many there
 * are. Symbols and ranks are looked through and moved four at a time.
 */
function mergeFunction(layout: MergeLayout, rankIndex: number): WasmFunction {
  const rank = (left: Code, right: Code, hash: number): Code =>
    w.call(rankIndex, left, right, g(hash));
  const touch = (hash: number): Code => w.load32(entryOf(hash, layout), layout.pairs);
  /** From here on `size` and `best` count bytes of numbers. */
  const idAt = (offset: number): Code => w.load32(g(best), layout.ids + offset);
  const half = (a: number[]): Code =>
    w.set(least, w.min32(g(least), w.swizzle(g(least), w.constV(a))));
  return {
    name: "merge",
    parameters: 3,
    locals: [i32, i32, i32, i32, i32, i32, i32, i32, v128],
    body: [
      ...w.store32(w.i32(layout.count), w.add(w.load32(w.i32(layout.count)), w.i32(1))),
      ...w.set(byte, w.load8(g(from))),
      ...w.set(size, times4(g(size))),
      ...w.set(i, w.i32(0)),
      ...w.loop(
        w.set(from, w.add(g(from), w.i32(1))),
        w.set(next, w.load8(g(from))),
        w.store32(g(i), w.load32(times4(g(byte)), layout.byteIds), layout.ids),
        w.store32(
          g(i),
          w.load32(times4(w.or(w.shl(g(byte), w.i32(8)), g(next))), layout.bytePairRanks),
          layout.ranks,
        ),
        w.set(byte, g(next)),
        w.set(i, w.add(g(i), w.i32(numberSize))),
        w.brIf(0, w.ltS(g(i), g(size))),
      ),
      // The last symbol begins no pair, nor does what stands behind it.
      ...[0, 16, 32].flatMap((offset) =>
        w.storeV(
          w.sub(g(size), w.i32(numberSize)),
          w.splat32(w.i32(noRank)),
          layout.ranks + offset - (offset === 32 ? 12 : 0),
        ),
      ),
      ...w.block(
        w.loop(
          w.set(least, w.splat32(w.i32(noRank))),
          eachFour(w.i32(0), g(size), w.set(least, w.min32(g(least), w.loadV(g(i), layout.ranks)))),
          half([8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7]),
          half([4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11]),
          w.set(lowest, w.lane32(0, g(least))),
          w.brIf(1, w.eq(g(lowest), w.i32(noRank))),
          // The leftmost of them.
          w.set(i, w.i32(-16)),
          w.loop(
            w.set(i, w.add(g(i), w.i32(16))),
            w.set(best, w.bitmask32(w.eq32(w.loadV(g(i), layout.ranks), g(least)))),
            w.brIf(0, w.eqz(g(best))),
          ),
          w.set(best, w.add(g(i), times4(w.ctz(g(best))))),
          w.set(merged, w.load32(times4(g(lowest)), layout.merged)),
          eachFour(
            w.add(g(best), w.i32(numberSize)),
            g(size),
            w.storeV(g(i), w.loadV(g(i), layout.ids + numberSize), layout.ids),
            w.storeV(g(i), w.loadV(g(i), layout.ranks + numberSize), layout.ranks),
          ),
          w.set(size, w.sub(g(size), w.i32(numberSize))),
          w.store32(g(best), g(merged), layout.ids),
          // Both pairs are asked of memory before either is looked at.
          hashPair(first, idAt(-numberSize), g(merged)),
          hashPair(second, g(merged), idAt(numberSize)),
          w.set(i, w.xor(touch(first), touch(second))),
          w.ifElse(
            w.ltS(w.add(g(best), w.i32(numberSize)), g(size)),
            w.store32(g(best), rank(g(merged), idAt(numberSize), second), layout.ranks),
            w.store32(g(best), w.i32(noRank), layout.ranks),
          ),
          w.if(
            g(best),
            w.store32(
              g(best),
              rank(idAt(-numberSize), g(merged), first),
              layout.ranks - numberSize,
            ),
          ),
          w.br(0),
        ),
      ),
      ...eachFour(w.i32(0), g(size), w.storeV(w.add(g(out), g(i)), w.loadV(g(i), layout.ids))),
      ...w.shrU(g(size), w.i32(2)),
    ],
  };
}

/** The functions `rank` and `merge`, of which the first has this number in its module. */
export function mergeFunctions(layout: MergeLayout, index: number): readonly WasmFunction[] {
  return [rankFunction(layout), mergeFunction(layout, index)];
}
