import { assembleModule, wasm as w, wasmTypes, type Code } from "../wasm/wasm-assembler.ts";
import type { SplitRules } from "./split-rules.ts";
import {
  tableSize,
  tokensMax,
  wordSizeMax,
  WordTableCode,
  type WordTable,
} from "./word-table-code.ts";
import { mergeFunctions, type MergeLayout } from "./merge-code.ts";
import { findWordEnds, windowLocals } from "./word-window.ts";

const fixedSize = 512;
/** Words of up to 15 bytes and 4 tokens: 128 Ki of them, 4 MB. */
const short: WordTable = { at: fixedSize, vectors: 1, setBits: 16 };
/** Words of up to 31 bytes and 8 tokens: 32 Ki, 2 MB. */
const long: WordTable = { at: short.at + tableSize(short), vectors: 2, setBits: 14 };

/** The tables of words. */
export const wordTables = { short, long } as const;

/** Where things are in the module's memory. */
export const layout = {
  /** Where the ids end that a run has put. */
  end: 0,
  key: 16,
  masks: 64,
  /** Where the words of a window are looked for: an offset each. */
  sets: 128,
  /** What merging needs, then the text. */
  merging: long.at + tableSize(long),
  /** Bytes 0 that stand behind the text. */
  padding: 64,
} as const;

const shortCode = new WordTableCode(short, layout);
const longCode = new WordTableCode(long, layout);
const g = w.get;

/** Locals of `run` beside those of the window. */
const out = 2;
const word = 8;
const size = 9;
const hash = 29;
const entry = 30;
const found = { from: word, size, entry, hash } as const;
const inShort = { ...found, key: [31] } as const;
const inLong = { ...found, key: [31, 32] } as const;

/** Numbers of functions that others call, in the order in which they are in the module. */
const called = { rank: 0, merge: 1, placeShort: 2, placeLong: 3, learn: 4 } as const;

/**
 * `run(from, to, out)`: puts the tokens of the words of `[from, to)` to `out`. Words that the tables lack are merged and put
 * there, unless `ignoreMerges` makes it the vocabulary's business what they are. Returns `to`, or where the word begins
 * that it does not read, or that it would have to merge beyond the limit; `end` says where the tokens end.
 */
function runBody({ rules, ignoreMerges, merging }: RunModuleOptions): Code {
  const leave = (at: number): Code => [
    ...w.store32(w.i32(0), g(out), layout.end),
    ...w.return(g(at)),
  ];
  const advance = (count: Code): Code => w.set(out, w.add(g(out), w.shl(count, w.i32(2))));
  const { at, to, starts, some, place, skip } = windowLocals;
  const setSize = w.set(size, w.sub(w.add(g(at), w.wrap(w.ctz64(g(some)))), g(word)));
  /** For the words that end in the window, one after the other. */
  const eachWord = (...code: readonly Code[]): Code => [
    ...w.set(some, g(starts)),
    ...w.set(place, w.i32(0)),
    ...w.loop(
      setSize,
      ...code,
      w.set(word, w.add(g(word), g(size))),
      w.set(place, w.add(g(place), w.i32(4))),
      w.set(some, w.and64(g(some), w.sub64(g(some), w.i64(1n)))),
      w.brIf(0, w.eqz(w.eqz64(g(some)))),
    ),
  ];
  const isLong = w.gtS(g(size), w.i32(wordSizeMax(short)));
  const prepare = (code: WordTableCode, locals: typeof inShort | typeof inLong): Code => [
    ...code.read(locals),
    ...code.seek(locals),
    ...w.store32(g(place), g(entry), layout.sets),
    ...w.set(skip, w.xor(g(skip), code.touch(locals))),
  ];
  const take = (code: WordTableCode, locals: typeof inShort | typeof inLong): Code => [
    ...w.set(entry, w.load32(g(place), layout.sets)),
    ...code.read(locals),
    ...w.ifElse(
      code.lacks(locals),
      ignoreMerges
        ? leave(word)
        : [
            ...w.if(
              w.geS(w.load32(w.i32(merging.count)), w.load32(w.i32(merging.limit))),
              leave(word),
            ),
            ...advance(w.call(called.learn, g(word), g(size), g(out))),
          ],
      [...code.choose(locals), ...code.put(locals, out), ...advance(code.count(locals))],
    ),
  ];
  return [
    ...w.set(word, g(at)),
    ...w.loop(
      w.if(w.geS(g(at), g(to)), leave(at)),
      findWordEnds(rules, leave(at)),
      w.if(w.eqz64(g(starts)), leave(at)),
      // All sets of the window's words are asked of memory at once, then looked into.
      eachWord(
        w.ifElse(
          isLong,
          w.if(w.leS(g(size), w.i32(wordSizeMax(long))), prepare(longCode, inLong)),
          prepare(shortCode, inShort),
        ),
      ),
      w.set(word, g(at)),
      eachWord(
        w.ifElse(
          isLong,
          [
            ...w.if(w.gtS(g(size), w.i32(wordSizeMax(long))), leave(word)),
            ...take(longCode, inLong),
          ],
          take(shortCode, inShort),
        ),
      ),
      w.set(at, g(word)),
      w.br(0),
    ),
    ...w.i32(-1),
  ];
}

/** Locals of `put` and `place`: the word and its size; for `put` where its tokens go, for `place` a flag; then these. */
const third = 2;
const placed = { from: 0, size: 1, entry: 3, hash: 4 } as const;
const placedShort = { ...placed, key: [5] } as const;
const placedLong = { ...placed, key: [5, 6] } as const;

/** `put(from, size, out)`: writes the tokens of a word to `out` and returns how many there are, 0 for an unknown word. */
const putBody: Code = [
  ...w.if(
    w.leS(g(placed.size), w.i32(wordSizeMax(short))),
    shortCode.read(placedShort),
    shortCode.seek(placedShort),
    w.if(
      w.eqz(shortCode.lacks(placedShort)),
      shortCode.choose(placedShort),
      shortCode.put(placedShort, third),
      w.return(shortCode.count(placedShort)),
    ),
  ),
  ...longCode.read(placedLong),
  ...longCode.seek(placedLong),
  ...w.if(longCode.lacks(placedLong), w.return(w.i32(0))),
  ...longCode.choose(placedLong),
  ...longCode.put(placedLong, third),
  ...longCode.count(placedLong),
];

/**
 * `learn(from, size, out)`: merges a word of up to `mergedSizeMax` bytes, writes its tokens to `out` and, if they are few enough, to a
 * table; returns how many there are. Locals: 3 the count, 4 an address.
 */
const learnBody: Code = [
  ...w.set(3, w.call(called.merge, g(0), g(1), g(2))),
  ...w.ifElse(
    w.and(w.leS(g(1), w.i32(wordSizeMax(short))), w.leS(g(3), w.i32(tokensMax(short)))),
    [...w.set(4, w.call(called.placeShort, g(0), g(1))), ...shortCode.putPlaced(4, 2, 3)],
    w.if(
      w.leS(g(3), w.i32(tokensMax(long))),
      w.set(4, w.call(called.placeLong, g(0), g(1))),
      longCode.putPlaced(4, 2, 3),
    ),
  ),
  ...g(3),
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

const { i32, i64, v128 } = wasmTypes;

/** What a module is made for. */
export interface RunModuleOptions {
  readonly rules: SplitRules;
  /** What added tokens begin with; `undefined` when that is too varied. */
  readonly starts: TokenStarts | undefined;
  readonly merging: MergeLayout;
  /** Whether a word that is a vocabulary entry is that entry, whatever merging would give. */
  readonly ignoreMerges: boolean;
}

/** The module's bytes. */
export function assembleRunModule(options: RunModuleOptions): Uint8Array<ArrayBuffer> {
  return assembleModule([
    ...mergeFunctions(options.merging, called.rank),
    {
      name: "placeShort",
      parameters: 2,
      locals: [i32, i32, i64, v128],
      body: shortCode.place(placedShort, third),
    },
    {
      name: "placeLong",
      parameters: 2,
      locals: [i32, i32, i64, v128, v128],
      body: longCode.place(placedLong, third),
    },
    { name: "learn", parameters: 3, locals: [i32, i32], body: learnBody },
    { name: "put", parameters: 3, locals: [i32, i64, v128, v128], body: putBody },
    {
      name: "run",
      parameters: 3,
      locals: [
        ...new Array<number>(7).fill(i32),
        ...new Array<number>(15).fill(i64),
        ...new Array<number>(4).fill(v128),
        ...[i64, i32, v128, v128],
      ],
      body: runBody(options),
    },
    { name: "mark", parameters: 2, locals: [i32], body: markBody(options.starts) },
    { name: "ascii", parameters: 2, locals: [], body: asciiBody },
  ]);
}
