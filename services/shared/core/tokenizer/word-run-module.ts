import { assembleModule, wasm as w, wasmTypes, type Code } from "../wasm/wasm-assembler.ts";
import type { SplitRules } from "./split-rules.ts";
import { findWordEnds, windowLocals } from "./word-window.ts";

/** Longest word that the table holds, bytes; most tokens of one. */
export const keptWordSizeMax = 15;
export const keptTokensMax = 4;

/** Sets of two words in the table: 2 MB. */
const setBits = 15;
const setSize = 64;
const entrySize = 32;

/**
 * Where things are in the module's memory.
 *
 * An entry of the table of words is 32 bytes: the word's, zeros, and in the 16th byte how many; then up to four tokens of
 * three bytes each, in the fourth byte of the last how many, in that of the third whether the word was met again.
 */
export const layout = {
  /** How far into the ids the run has come. */
  end: 0,
  /** Four numbers of 64 bits: starting value and multiplier (odd), twice. */
  key: 16,
  /** For each size of up to fifteen bytes, sixteen bytes that keep these. */
  masks: 64,
  table: 512,
  text: 512 + setSize * 2 ** setBits,
  /** Bytes 0 that stand behind the text. */
  padding: 64,
} as const;

/** Offsets in an entry. */
const sizeAt = 15;
const tokensAt = 16;
const usedAt = 27;
const countAt = 31;

const g = w.get;

/** Takes the word of `size` bytes at `from` into `key`, and where its set is into `set`. */
function seek(from: number, size: number, key: number, set: number, hash: number): Code {
  const half = (lane: number): Code =>
    w.mul64(
      w.xor64(w.lane64(lane, g(key)), w.load64(w.i32(0), layout.key + 16 * lane)),
      w.load64(w.i32(0), layout.key + 8 + 16 * lane),
    );
  return [
    ...w.set(
      key,
      w.setByte(
        15,
        w.andV(w.loadV(g(from)), w.loadV(w.shl(g(size), w.i32(4)), layout.masks)),
        g(size),
      ),
    ),
    ...w.set(hash, w.add64(half(0), half(1))),
    ...w.set(hash, w.xor64(g(hash), w.shrU64(g(hash), w.i64(32n)))),
    ...w.set(hash, w.mul64(g(hash), w.i64(0x9e3779b97f4a7c15n))),
    ...w.set(
      set,
      w.shl(w.wrap(w.shrU64(g(hash), w.i64(BigInt(64 - setBits)))), w.i32(Math.log2(setSize))),
    ),
  ];
}

const inWord = [0xff, 0xff, 0xff, 0xff];
const inThreeBytes = [0xff, 0xff, 0xff, 0];

const differs = (key: number, entry: number, offset: number): Code =>
  w.anyTrue(w.xorV(g(key), w.loadV(g(entry), layout.table + offset)));

/** Locals of `put`: the word, its size and where its tokens go, then these. */
const putting = { from: 0, size: 1, out: 2, entry: 3, key: 4, hash: 5 } as const;

/** Sets `entry` to that of `key`; runs `otherwise`, which leaves, when there is none. */
const findEntry = (entryOf: number, keyOf: number, otherwise: Code): Code =>
  w.if(
    differs(keyOf, entryOf, 0),
    w.if(differs(keyOf, entryOf, entrySize), otherwise),
    w.set(entryOf, w.add(g(entryOf), w.i32(entrySize))),
  );

/** Writes the tokens of an entry to an address and marks its word as met again. */
const putTokens = (entryOf: number, to: number): Code => [
  ...w.storeV(
    g(to),
    w.andV(
      w.loadV(g(entryOf), layout.table + tokensAt),
      w.constV([...inWord, ...inWord, ...inThreeBytes, ...inThreeBytes]),
    ),
  ),
  ...w.store8(g(entryOf), w.i32(1), layout.table + usedAt),
];

/** `put(from, size, out)`: writes the tokens of a word to `out` and returns how many there are, 0 for an unknown word. */
const putBody: Code = [
  ...seek(putting.from, putting.size, putting.key, putting.entry, putting.hash),
  ...findEntry(putting.entry, putting.key, w.return(w.i32(0))),
  ...putTokens(putting.entry, putting.out),
  ...w.load8(g(putting.entry), layout.table + countAt),
];

/** Locals of `run` beside those of the window. */
const out = 2;
const word = 8;
const length = 9;
const hash = 29;
const key = 30;
const entry = 31;

/**
 * `run(from, to, out)`: appends the tokens of the words of `[from, to)` at `out` as long as the table has them. Returns `to`, or where the
 * word begins that it lacks; `end` says where the tokens end.
 */
function runBody(rules: SplitRules): Code {
  const leave = (at: number): Code => [
    ...w.store32(w.i32(0), g(out), layout.end),
    ...w.return(g(at)),
  ];
  const { at, to, starts } = windowLocals;
  return [
    ...w.set(word, g(at)),
    ...w.loop(
      w.if(w.geS(g(at), g(to)), leave(at)),
      findWordEnds(rules, leave(at)),
      w.if(w.eqz64(g(starts)), leave(at)),
      w.loop(
        w.set(length, w.sub(w.add(g(at), w.wrap(w.ctz64(g(starts)))), g(word))),
        w.if(w.gtS(g(length), w.i32(keptWordSizeMax)), leave(word)),
        seek(word, length, key, entry, hash),
        findEntry(entry, key, leave(word)),
        putTokens(entry, out),
        w.set(out, w.add(g(out), w.shl(w.load8(g(entry), layout.table + countAt), w.i32(2)))),
        w.set(word, w.add(g(word), g(length))),
        w.set(starts, w.and64(g(starts), w.sub64(g(starts), w.i64(1n)))),
        w.brIf(0, w.eqz(w.eqz64(g(starts)))),
      ),
      w.set(at, g(word)),
      w.br(0),
    ),
    ...w.i32(-1),
  ];
}

/** Locals of `place`: the word and its size, then these. */
const placed = { from: 0, size: 1, set: 2, key: 3, hash: 4, flags: 5 } as const;

const sizeOf = (offset: number): Code => w.load8(g(placed.set), layout.table + offset + sizeAt);
const usedOf = (offset: number): Code => w.load8(g(placed.set), layout.table + offset + usedAt);
const forget = (offset: number): Code =>
  w.store8(g(placed.set), w.i32(0), layout.table + offset + usedAt);
const takeSecond: Code = w.set(placed.set, w.add(g(placed.set), w.i32(entrySize)));

/**
 * `place(from, size)`: writes a word into an entry that is free, or else whose word was not met again, and returns where its
 * tokens go. A set whose words were both met again forgets that, and loses one of them.
 */
const placeBody: Code = [
  ...seek(placed.from, placed.size, placed.key, placed.set, placed.hash),
  ...w.if(
    sizeOf(0),
    w.ifElse(
      w.eqz(sizeOf(entrySize)),
      takeSecond,
      w.if(
        usedOf(0),
        w.if(
          w.and(usedOf(entrySize), w.wrap(g(placed.hash))),
          forget(0),
          forget(entrySize),
          w.set(placed.flags, w.i32(1)),
        ),
        w.if(w.eqz(g(placed.flags)), takeSecond),
      ),
    ),
  ),
  ...w.storeV(g(placed.set), g(placed.key), layout.table),
  ...w.add(g(placed.set), w.i32(layout.table + tokensAt)),
];

/** `ascii(from, to)`: 1 when no byte of the text is above 127, else 0; bytes up to 64 behind it are 0. */
const asciiBody: Code = [
  ...w.block(
    w.loop(
      w.brIf(1, w.geS(g(0), g(1))),
      w.if(
        w.bitmask(
          w.orV(
            w.orV(w.loadV(g(0)), w.loadV(g(0), 16)),
            w.orV(w.loadV(g(0), 32), w.loadV(g(0), 48)),
          ),
        ),
        w.return(w.i32(0)),
      ),
      w.set(0, w.add(g(0), w.i32(64))),
      w.br(0),
    ),
  ),
  ...w.i32(1),
];

const { i32, i64, v128 } = wasmTypes;

/** What added tokens begin with: any of the first bytes, then any of the second. */
export interface TokenStarts {
  readonly first: readonly number[];
  /** None when a token is a single byte. */
  readonly second: readonly number[];
}

/** `mark(from, to)`: the first place in `[from, to)` where an added token may begin, or `to` or more for none. */
function markBody(starts: TokenStarts | undefined): Code {
  // Everywhere.
  if (starts === undefined) return g(0);
  const { first, second } = starts;
  const isOneOf = (bytes: readonly number[], chunk: Code): Code =>
    bytes
      .map((byte) => w.eqBytes(chunk, w.constV(new Array<number>(16).fill(byte))))
      .reduce((sum, next) => w.orV(sum, next));
  if (first.length === 0) return g(1);
  const begins = isOneOf(first, w.loadV(g(0)));
  return [
    ...w.block(
      w.loop(
        w.brIf(1, w.geS(g(0), g(1))),
        w.set(
          2,
          w.bitmask(
            second.length === 0 ? begins : w.andV(begins, isOneOf(second, w.loadV(g(0), 1))),
          ),
        ),
        w.if(g(2), w.return(w.add(g(0), w.ctz(g(2))))),
        w.set(0, w.add(g(0), w.i32(16))),
        w.br(0),
      ),
    ),
    ...g(1),
  ];
}

/** The module's bytes, for one family of rules and one set of added tokens. */
export function assembleRunModule(
  rules: SplitRules,
  starts: TokenStarts | undefined,
): Uint8Array<ArrayBuffer> {
  return assembleModule([
    {
      name: "run",
      parameters: 3,
      locals: [
        ...new Array<number>(7).fill(i32),
        ...new Array<number>(15).fill(i64),
        ...new Array<number>(4).fill(v128),
        i64,
        v128,
        i32,
      ],
      body: runBody(rules),
    },
    { name: "put", parameters: 3, locals: [i32, v128, i64], body: putBody },
    { name: "place", parameters: 2, locals: [i32, v128, i64, i32], body: placeBody },
    { name: "mark", parameters: 2, locals: [i32], body: markBody(starts) },
    { name: "ascii", parameters: 2, locals: [], body: asciiBody },
  ]);
}
