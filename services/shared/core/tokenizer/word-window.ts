import { wasm as w, type Code } from "../wasm/wasm-assembler.ts";
import type { SplitRules } from "./split-rules.ts";

/**
 * Where words begin among 64 bytes of text, by the alternatives of the split pattern, as arithmetic on masks of one bit per
 * byte instead of a walk over the bytes: no branch depends on the text but for apostrophes, and for line ends behind
 * indented empty lines. Only for ASCII: a window ends before the first other byte.
 *
 * The masks say what a byte is: letter, digit, white space (line ends among it), other. Adding a mask to one with the first
 * bits of some of its runs clears these runs by the carry, so that a run can be followed as long as it is without a loop.
 */

/** Numbers of the locals that the code here uses; `at` is the first byte of the window, a word's first too, `to` the text's end. */
export const windowLocals = {
  at: 0,
  to: 1,
  /** Bytes of the window. */
  size: 3,
  /** 1 when the text ends in the window, so that its last word does too. */
  final: 4,
  place: 5,
  skip: 6,
  last: 7,
  valid: 10,
  letters: 11,
  digits: 12,
  spaces: 13,
  newlines: 14,
  blanks: 15,
  others: 16,
  allOthers: 17,
  lead: 19,
  starts: 20,
  some: 21,
  more: 22,
  capitals: 23,
  allSpaces: 24,
  chunk: 25,
} as const;
const at = windowLocals;

const all = w.i64(-1n);
const one = w.i64(1n);
const and = (first: Code, ...rest: readonly Code[]): Code =>
  rest.reduce((sum, next) => w.and64(sum, next), first);
const or = (first: Code, ...rest: readonly Code[]): Code =>
  rest.reduce((sum, next) => w.or64(sum, next), first);
const not = (mask: Code): Code => w.xor64(mask, all);
/** Bits of the bytes behind (in front of) those of a mask. */
const behind = (mask: Code, by = 1): Code => w.shl64(mask, w.i64(BigInt(by)));
const before = (mask: Code): Code => w.shrU64(mask, one);
const bit = (place: Code): Code => w.shl64(one, w.extendU(place));
const below = (place: Code): Code => w.sub64(bit(place), one);
const isNot0 = (mask: Code): Code => w.eqz(w.eqz64(mask));
const firstPlace = (mask: Code): Code => w.wrap(w.ctz64(mask));
/** The place behind the last bit of a mask, 0 for none. */
const endPlace = (mask: Code): Code => w.sub(w.i32(64), w.wrap(w.clz64(mask)));
/** Runs of `mask` that begin with the bits of `first`, each from there on. */
const runsFrom = (mask: Code, first: Code): Code => and(mask, not(w.add64(mask, first)));
const firstOf = (mask: Code): Code => and(mask, not(behind(mask)));
const lastOf = (mask: Code): Code => and(mask, not(before(mask)));

const g = w.get;
const L = g(at.letters);
const D = g(at.digits);
const S = g(at.spaces);
const N = g(at.newlines);
const O = g(at.others);

const splat = (byte: number): Code => w.constV(new Array<number>(16).fill(byte));
const chunks = [0, 1, 2, 3].map((i) => g(at.chunk + i));

/** A mask of the bytes for which `test`, of sixteen bytes, is true. */
function maskOf(test: (chunk: Code) => Code): Code {
  const masks = chunks.map((chunk, i) => behind(w.extendU(w.bitmask(test(chunk))), 16 * i));
  return or(...(masks as [Code, ...Code[]]));
}

const equals =
  (byte: number) =>
  (chunk: Code): Code =>
    w.eqBytes(chunk, splat(byte));
const between =
  (low: number, count: number) =>
  (chunk: Code): Code =>
    w.ltBytesU(w.subBytes(chunk, splat(low)), splat(count));

/** Loads the window and says what its bytes are. Returns from the function with `stop` where it would be empty. */
function classify(rules: SplitRules, stop: Code): Code {
  return [
    ...chunks.flatMap((_, i) => w.set(at.chunk + i, w.loadV(g(at.at), 16 * i))),
    ...w.set(at.size, w.sub(g(at.to), g(at.at))),
    ...w.set(at.final, w.ltS(g(at.size), w.i32(64))),
    ...w.if(w.eqz(g(at.final)), w.set(at.size, w.i32(64))),
    ...w.set(at.valid, w.shrU64(all, w.extendU(w.sub(w.i32(64), g(at.size))))),
    ...w.set(
      at.some,
      and(
        maskOf((chunk) => chunk),
        g(at.valid),
      ),
    ),
    ...w.if(
      isNot0(g(at.some)),
      w.set(at.size, firstPlace(g(at.some))),
      w.if(w.eqz(g(at.size)), stop),
      w.set(at.valid, below(g(at.size))),
      w.set(at.final, w.i32(0)),
    ),
    ...w.set(
      at.letters,
      and(
        maskOf((chunk) => between(0x61, 26)(w.orV(chunk, splat(0x20)))),
        g(at.valid),
      ),
    ),
    ...(rules.casedWords ? w.set(at.capitals, and(maskOf(between(0x41, 26)), g(at.valid))) : []),
    ...w.set(at.digits, and(maskOf(between(0x30, 10)), g(at.valid))),
    ...w.set(at.blanks, and(maskOf(equals(0x20)), g(at.valid))),
    ...w.set(
      at.newlines,
      and(
        maskOf((c) => w.orV(equals(0x0a)(c), equals(0x0d)(c))),
        g(at.valid),
      ),
    ),
    ...w.set(at.spaces, and(or(maskOf(between(0x09, 5)), g(at.blanks)), g(at.valid))),
    ...w.set(at.others, and(g(at.valid), not(or(L, D, S)))),
    ...w.set(at.allOthers, O),
    ...w.set(at.allSpaces, S),
  ];
}

/**
 * Takes line ends that follow symbols out of white space: they belong to these. For o200k so do slashes behind them.
 */
function joinLineEnds(rules: SplitRules): Code {
  const first = and(behind(lastOf(O)), N);
  if (!rules.casedWords) {
    return [
      ...w.set(at.some, runsFrom(N, first)),
      ...w.set(at.spaces, and(S, not(g(at.some)))),
      ...w.set(at.newlines, and(N, not(g(at.some)))),
    ];
  }
  return [
    ...w.set(at.some, first),
    ...w.if(
      isNot0(g(at.some)),
      w.set(at.more, or(N, and(maskOf(equals(0x2f)), g(at.valid)))),
      // Several may begin in one run, so that a carry does not do.
      [1, 2, 4, 8, 16, 32].flatMap((by) => [
        ...w.set(at.some, or(g(at.some), and(g(at.more), behind(g(at.some), by)))),
        ...w.set(at.more, and(g(at.more), behind(g(at.more), by))),
      ]),
      w.set(at.spaces, and(S, not(g(at.some)))),
      w.set(at.newlines, and(N, not(g(at.some)))),
      w.set(at.others, and(O, not(g(at.some)))),
    ),
  ];
}

/** White space that is no line end. */
const W = and(S, not(N));

/**
 * Adds where words begin in white space: a run of it is one word up to its last line end, the rest is one but for its last
 * character, which is the beginning of what follows unless the text ends.
 */
const spaceStarts: Code = [
  ...w.set(at.starts, or(g(at.starts), firstOf(S))),
  ...w.set(at.some, and(lastOf(S), W)),
  ...w.if(g(at.final), w.set(at.some, and(g(at.some), before(g(at.valid))))),
  ...w.set(at.starts, or(g(at.starts), g(at.some))),
  // Behind a line end that may be the run's last one.
  ...w.set(at.some, and(behind(N), W)),
  // It is not where white space ends with another one behind it.
  ...w.set(at.more, and(lastOf(W), before(N))),
  ...w.if(
    isNot0(g(at.more)),
    w.loop(
      w.set(at.place, endPlace(and(not(W), below(firstPlace(g(at.more)))))),
      w.set(at.some, and(g(at.some), not(bit(g(at.place))))),
      w.set(at.more, and(g(at.more), w.sub64(g(at.more), one))),
      w.brIf(0, isNot0(g(at.more))),
    ),
  ),
  ...w.set(at.starts, or(g(at.starts), g(at.some))),
];

/** Adds where numbers begin: at each digit, or at every third of a run. */
function digitStarts(rules: SplitRules): Code {
  if (rules.digitsMax === 1) return w.set(at.starts, or(g(at.starts), D));
  return [
    ...w.set(at.some, firstOf(D)),
    ...w.if(
      isNot0(g(at.some)),
      w.loop(
        w.set(at.starts, or(g(at.starts), g(at.some))),
        w.set(at.some, and(behind(g(at.some), 3), behind(D, 2), behind(D), D)),
        w.brIf(0, isNot0(g(at.some))),
      ),
    ),
  ];
}

/** A byte of the text, in small letters. */
const small = (offset: number): Code =>
  w.or(w.load8(w.add(g(at.at), g(at.place)), offset), w.i32(0x20));
const isByte = (code: Code, byte: string): Code => w.eq(code, w.i32(byte.charCodeAt(0)));
const isOneOf = (code: Code, bytes: string): Code =>
  Array.from(bytes, (byte) => isByte(code, byte)).reduce((sum, next) => w.or(sum, next));
const isLetterAt = (offset: number): Code =>
  w.wrap(and(w.shrU64(L, w.extendU(w.add(g(at.place), w.i32(offset)))), one));

/** Sets `skip` to the size of the contraction that the apostrophe at `place` begins, 0 for none. */
const contraction: Code = [
  ...w.set(at.skip, w.i32(0)),
  ...w.if(
    w.ltS(g(at.place), w.i32(62)),
    w.if(
      isLetterAt(1),
      w.if(isOneOf(small(1), "stmd"), w.set(at.skip, w.i32(2))),
      w.if(
        w.and(
          isLetterAt(2),
          w.or(
            w.and(isOneOf(small(1), "rv"), isByte(small(2), "e")),
            w.and(isByte(small(1), "l"), isByte(small(2), "l")),
          ),
        ),
        w.set(at.skip, w.i32(3)),
      ),
    ),
  ),
];

/** Runs `code` for the place of each bit of `some`, the first one first. */
const eachOfSome = (...code: readonly Code[]): Code =>
  w.if(
    isNot0(g(at.some)),
    w.loop(
      w.set(at.place, firstPlace(g(at.some))),
      ...code,
      w.set(at.some, and(g(at.some), w.sub64(g(at.some), one))),
      w.brIf(0, isNot0(g(at.some))),
    ),
  );

/** A word that begins with an apostrophe ends behind a contraction. */
const contractionStarts: Code = w.if(
  isNot0(g(at.lead)),
  w.set(at.some, and(g(at.lead), maskOf(equals(0x27)))),
  eachOfSome(
    contraction,
    w.if(
      g(at.skip),
      w.set(at.starts, or(g(at.starts), and(bit(w.add(g(at.place), g(at.skip))), L))),
    ),
  ),
);

/** Of o200k a contraction belongs to the word before it; one that follows another begins a word. */
const contractionEnds: Code = [
  ...w.set(at.some, and(behind(L), maskOf(equals(0x27)), g(at.valid))),
  ...w.set(at.last, w.i32(-1)),
  ...eachOfSome(
    contraction,
    w.ifElse(w.or(w.eqz(g(at.skip)), w.eq(g(at.place), g(at.last))), w.set(at.last, w.i32(-1)), [
      ...w.set(at.last, w.add(g(at.place), g(at.skip))),
      ...w.set(at.more, and(below(g(at.last)), not(below(g(at.place))))),
      ...w.set(at.starts, or(and(g(at.starts), not(g(at.more))), and(bit(g(at.last)), L))),
    ]),
  ),
];

/**
 * Sets `starts` to the ends of words that are certain: where others begin, up to the run of bytes of one kind that the
 * window cuts; or the text's end.
 */
const certainEnds = (rules: SplitRules): Code => [
  ...w.set(at.starts, and(g(at.starts), w.i64(-2n))),
  ...w.ifElse(g(at.final), w.set(at.starts, or(g(at.starts), bit(g(at.size)))), [
    ...w.set(at.some, bit(w.sub(g(at.size), w.i32(1)))),
    ...w.set(
      at.some,
      w.select(
        L,
        w.select(
          D,
          w.select(g(at.allOthers), g(at.allSpaces), isNot0(and(g(at.some), g(at.allOthers)))),
          isNot0(and(g(at.some), D)),
        ),
        isNot0(and(g(at.some), L)),
      ),
    ),
    ...w.set(at.place, endPlace(and(not(g(at.some)), g(at.valid)))),
    ...w.set(
      at.starts,
      and(g(at.starts), w.sub64(w.shl64(w.i64(2n), w.extendU(g(at.place))), one)),
    ),
    ...(rules.casedWords
      ? [
          // An apostrophe in the last three bytes may begin a contraction.
          ...w.set(
            at.some,
            and(
              behind(L),
              maskOf(equals(0x27)),
              g(at.valid),
              not(w.shrU64(g(at.valid), w.i64(3n))),
            ),
          ),
          ...w.if(
            isNot0(g(at.some)),
            w.set(at.starts, and(g(at.starts), below(firstPlace(g(at.some))))),
          ),
        ]
      : []),
  ]),
];

/** Sets `starts` to the ends of the window's words. Runs `stop`, which returns, where it cannot read a single byte. */
export function findWordEnds(rules: SplitRules, stop: Code): Code {
  return [
    ...classify(rules, stop),
    ...joinLineEnds(rules),
    // A symbol alone before letters is the beginning of their word, unless a blank before it makes them two.
    ...w.set(at.starts, firstOf(O)),
    ...w.set(at.lead, and(g(at.starts), lastOf(O), before(L), not(behind(g(at.blanks))))),
    ...w.set(
      at.starts,
      or(
        and(g(at.starts), not(behind(g(at.blanks)))),
        and(firstOf(L), not(behind(or(W, g(at.lead))))),
      ),
    ),
    ...(rules.casedWords
      ? w.set(at.starts, or(g(at.starts), and(g(at.capitals), behind(and(L, not(g(at.capitals)))))))
      : []),
    ...digitStarts(rules),
    ...spaceStarts,
    ...(rules.casedWords ? contractionEnds : contractionStarts),
    ...certainEnds(rules),
  ];
}
