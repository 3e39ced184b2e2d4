import { assembleModule, wasm as w, wasmTypes, type Code } from "../wasm/wasm-assembler.ts";

/**
 * Reads, hashes and unescapes string literals with vector instructions, sixteen bytes a step: see `TextScanner`, whose
 * results these are but for the hash, which is another one.
 */

/** Where things are in the module's memory. */
export const layout = {
  /** Hash of the text read last, 128 bits. */
  hash: 0,
  /** Whether it has escapes; whether some of them spell surrogates. Not zero for yes. */
  escaped: 16,
  surrogates: 20,
  /** Key: two multipliers (odd) and two starting values, 64 bits each. */
  key: 32,
  /** Sixteen bytes 255, then sixteen bytes 0. */
  tailMask: 64,
  /** What is looked for. */
  needle: 96,
  needleSizeMax: 160,
  /** For each byte its value as a hexadecimal digit plus 16, or 0. */
  hexDigits: 256,
  /** For each byte behind a backslash what the two stand for. */
  unescaped: 512,
  /** The bytes that are read, followed by at least `padding` bytes 0. */
  text: 768,
  padding: 64,
} as const;

const splat = (byte: number): Code => w.constV(new Array<number>(16).fill(byte));

/** Characters that may follow a backslash, by their two halves: a bit of the high half is in the low one's set. */
const highHalves = [0, 0, 1, 0, 0, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0];
const lowHalves = [0, 0, 13, 0, 8, 8, 4, 0, 0, 0, 0, 0, 2, 0, 4, 1];

/** Locals of `text`; the first is its parameter. */
const at = 0;
const start = 1;
const backslashes = 2;
const carry = 3;
const code = 4;
const escaped = 5;
const quotes = 6;
const faults = 7;
const unicode = 8;
const limit = 9;
const digits = 10;
const anyEscape = 11;
const surrogates = 12;
const chunk = 13;
const h0 = 14;
const h1 = 15;
const k0 = 16;
const k1 = 17;
const oddBits = 0xaaaaaaaa | 0;

const zero = w.i32(0);

/** Takes a chunk into the hash. */
function mix(first: number, second: number, m0: number, m1: number, value: Code): Code {
  return [
    ...w.set(first, w.mul64(w.xor64(w.get(first), w.lane64(0, value)), w.get(m0))),
    ...w.set(first, w.xor64(w.get(first), w.shrU64(w.get(first), w.i64(32n)))),
    ...w.set(
      second,
      w.mul64(w.add64(w.xor64(w.get(second), w.lane64(1, value)), w.get(first)), w.get(m1)),
    ),
    ...w.set(second, w.xor64(w.get(second), w.shrU64(w.get(second), w.i64(29n)))),
  ];
}

/** Takes the length in and writes the hash to memory. */
function finish(first: number, second: number, m0: number, m1: number, size: Code): Code {
  const fold = (lane: number, by: Code, shift: bigint): Code => [
    ...w.set(lane, w.mul64(w.get(lane), by)),
    ...w.set(lane, w.xor64(w.get(lane), w.shrU64(w.get(lane), w.i64(shift)))),
  ];
  return [
    ...w.set(first, w.xor64(w.get(first), w.extendU(size))),
    ...fold(first, w.get(m1), 32n),
    ...w.set(second, w.add64(w.get(second), w.get(first))),
    ...fold(second, w.get(m0), 32n),
    ...w.set(first, w.add64(w.get(first), w.get(second))),
    ...fold(first, w.i64(0x9e3779b97f4a7c15n), 29n),
    ...w.store64(zero, w.get(first), layout.hash),
    ...w.store64(zero, w.get(second), layout.hash + 8),
  ];
}

/** The first `size` bytes of a chunk, zeros behind them. */
function head(value: Code, size: Code): Code {
  return w.andV(value, w.loadV(w.sub(w.i32(layout.tailMask + 16), size)));
}

function begin(first: number, second: number, m0: number, m1: number): Code {
  return [
    ...w.set(m0, w.load64(zero, layout.key)),
    ...w.set(m1, w.load64(zero, layout.key + 8)),
    ...w.set(first, w.load64(zero, layout.key + 16)),
    ...w.set(second, w.load64(zero, layout.key + 24)),
  ];
}

const v = w.get(chunk);
const not = (value: Code): Code => w.xor(value, w.i32(-1));
const bitsBelow = (bit: Code): Code => w.sub(w.shl(w.i32(1), bit), w.i32(1));
const hexDigit = (offset: number): Code =>
  w.load8(w.load8(w.get(digits), offset), layout.hexDigits);

/**
 * `text(at)`: the index of the quote that ends the literal whose first byte is at `at`, or -1 for a malformed one. Which
 * characters are escaped follows from runs of backslashes without a branch (as in simdjson, Langdale and Lemire,
 * "Parsing gigabytes of JSON per second", 2019, section 3.1.1).
 */
const textBody: Code = [
  ...w.set(start, w.get(at)),
  ...begin(h0, h1, k0, k1),
  ...w.loop(
    w.set(chunk, w.loadV(w.get(at))),
    w.set(backslashes, w.bitmask(w.eqBytes(v, splat(0x5c)))),
    // Backslashes that are not escaped themselves by the chunk before; the run that each begins.
    w.set(limit, w.and(w.get(backslashes), not(w.get(carry)))),
    w.set(
      code,
      w.xor(
        w.sub(w.or(w.shl(w.get(limit), w.i32(1)), w.i32(oddBits)), w.get(limit)),
        w.i32(oddBits),
      ),
    ),
    w.set(
      escaped,
      w.and(w.xor(w.get(code), w.or(w.get(backslashes), w.get(carry))), w.i32(0xffff)),
    ),
    w.set(carry, w.and(w.shrU(w.and(w.get(code), w.get(backslashes)), w.i32(15)), w.i32(1))),
    w.set(quotes, w.and(w.bitmask(w.eqBytes(v, splat(0x22))), not(w.get(escaped)))),
    w.set(
      faults,
      w.or(
        w.bitmask(w.ltBytesU(v, splat(0x20))),
        w.and(
          w.get(escaped),
          not(
            w.bitmask(
              w.neBytes(
                w.andV(
                  w.swizzle(w.constV(highHalves), w.shrBytesU(v, w.i32(4))),
                  w.swizzle(w.constV(lowHalves), w.andV(v, splat(0x0f))),
                ),
                splat(0),
              ),
            ),
          ),
        ),
      ),
    ),
    w.set(unicode, w.and(w.get(escaped), w.bitmask(w.eqBytes(v, splat(0x75))))),
    w.if(
      w.or(w.or(w.get(quotes), w.get(faults)), w.get(unicode)),
      // The quote's place, 16 for none.
      w.set(limit, w.ctz(w.or(w.get(quotes), w.i32(0x10000)))),
      w.if(w.and(w.get(faults), bitsBelow(w.get(limit))), w.return(w.i32(-1))),
      w.set(unicode, w.and(w.get(unicode), bitsBelow(w.get(limit)))),
      w.block(
        w.loop(
          w.brIf(1, w.eqz(w.get(unicode))),
          w.set(digits, w.add(w.get(at), w.ctz(w.get(unicode)))),
          w.if(
            w.eqz(
              w.and(
                w.and(w.and(hexDigit(1), hexDigit(2)), w.and(hexDigit(3), hexDigit(4))),
                w.i32(16),
              ),
            ),
            w.return(w.i32(-1)),
          ),
          // d8 … df
          w.set(
            surrogates,
            w.or(
              w.get(surrogates),
              w.and(
                w.eq(w.or(w.load8(w.get(digits), 1), w.i32(0x20)), w.i32(0x64)),
                w.geU(w.load8(w.get(digits), 2), w.i32(0x38)),
              ),
            ),
          ),
          w.set(unicode, w.and(w.get(unicode), w.sub(w.get(unicode), w.i32(1)))),
          w.br(0),
        ),
      ),
      w.if(
        w.get(quotes),
        w.set(chunk, head(v, w.get(limit))),
        mix(h0, h1, k0, k1, v),
        w.set(at, w.add(w.get(at), w.get(limit))),
        finish(h0, h1, k0, k1, w.sub(w.get(at), w.get(start))),
        w.set(
          anyEscape,
          w.or(w.get(anyEscape), w.and(w.get(backslashes), bitsBelow(w.get(limit)))),
        ),
        w.store32(zero, w.get(anyEscape), layout.escaped),
        w.store32(zero, w.get(surrogates), layout.surrogates),
        w.return(w.get(at)),
      ),
    ),
    w.set(anyEscape, w.or(w.get(anyEscape), w.get(backslashes))),
    mix(h0, h1, k0, k1, v),
    w.set(at, w.add(w.get(at), w.i32(16))),
    w.br(0),
  ),
  // Never reached; a function has to end with its result.
  ...w.i32(-1),
];

/** `hash(from, to)`: hashes bytes whatever they are. Locals: start, chunk, h0, h1, k0, k1. */
const hashBody: Code = [
  ...w.set(2, w.get(0)),
  ...begin(4, 5, 6, 7),
  ...w.block(
    w.loop(
      w.set(3, w.loadV(w.get(0))),
      // Fewer than sixteen are left.
      w.brIf(1, w.leS(w.sub(w.get(1), w.get(0)), w.i32(15))),
      mix(4, 5, 6, 7, w.get(3)),
      w.set(0, w.add(w.get(0), w.i32(16))),
      w.br(0),
    ),
  ),
  ...w.set(3, head(w.get(3), w.sub(w.get(1), w.get(0)))),
  ...mix(4, 5, 6, 7, w.get(3)),
  ...finish(4, 5, 6, 7, w.sub(w.get(1), w.get(2))),
  ...w.get(1),
];

const hexValue = (place: number, offset: number): Code =>
  w.and(w.load8(w.load8(w.get(place), offset), layout.hexDigits), w.i32(15));

/** Appends a byte at local 2. */
const append = (value: Code): Code => [
  ...w.store8(w.get(2), value),
  ...w.set(2, w.add(w.get(2), w.i32(1))),
];
const lowBits = (value: Code, shift: number): Code =>
  w.or(w.and(w.shrU(value, w.i32(shift)), w.i32(0x3f)), w.i32(0x80));

/**
 * `unescape(from, to, out)`: writes what a well-formed literal spells as UTF-8, surrogates excepted; returns the end of it. Writes up to
 * sixteen bytes more. Locals: 3 chunk, 4 mask, 5 code.
 */
const unescapeBody: Code = [
  ...w.loop(
    w.if(w.geS(w.get(0), w.get(1)), w.return(w.get(2))),
    w.set(3, w.loadV(w.get(0))),
    w.storeV(w.get(2), w.get(3)),
    // The next backslash, or the end when that comes first.
    w.set(4, w.bitmask(w.eqBytes(w.get(3), splat(0x5c)))),
    w.if(
      w.ltS(w.sub(w.get(1), w.get(0)), w.i32(16)),
      w.set(4, w.or(w.get(4), w.shl(w.i32(1), w.sub(w.get(1), w.get(0))))),
    ),
    w.set(4, w.ctz(w.or(w.get(4), w.i32(0x10000)))),
    w.set(0, w.add(w.get(0), w.get(4))),
    w.set(2, w.add(w.get(2), w.get(4))),
    w.brIf(0, w.eq(w.get(4), w.i32(16))),
    w.if(w.geS(w.get(0), w.get(1)), w.return(w.get(2))),
    w.set(5, w.load8(w.get(0), 1)),
    w.if(
      w.ne(w.get(5), w.i32(0x75)),
      append(w.load8(w.get(5), layout.unescaped)),
      w.set(0, w.add(w.get(0), w.i32(2))),
      w.br(1),
    ),
    w.set(
      5,
      w.or(
        w.or(w.shl(hexValue(0, 2), w.i32(12)), w.shl(hexValue(0, 3), w.i32(8))),
        w.or(w.shl(hexValue(0, 4), w.i32(4)), hexValue(0, 5)),
      ),
    ),
    w.set(0, w.add(w.get(0), w.i32(6))),
    w.ifElse(
      w.ltS(w.get(5), w.i32(0x80)),
      append(w.get(5)),
      w.ifElse(
        w.ltS(w.get(5), w.i32(0x800)),
        [...append(w.or(w.shrU(w.get(5), w.i32(6)), w.i32(0xc0))), ...append(lowBits(w.get(5), 0))],
        [
          ...append(w.or(w.shrU(w.get(5), w.i32(12)), w.i32(0xe0))),
          ...append(lowBits(w.get(5), 6)),
          ...append(lowBits(w.get(5), 0)),
        ],
      ),
    ),
    w.br(0),
  ),
  ...w.i32(-1),
];

/**
 * `find(from, to, size)`: where the first `size` bytes of the needle are in `[from, to)`, or -1. Looks at places where its first and last byte
 * fit. Locals: 3 first bytes, 4 last bytes, 5 mask, 6 place, 7 index.
 */
const findBody: Code = [
  ...w.set(3, w.splat(w.load8(w.i32(layout.needle)))),
  ...w.set(4, w.splat(w.load8(w.add(w.i32(layout.needle - 1), w.get(2))))),
  ...w.set(1, w.sub(w.get(1), w.get(2))),
  ...w.loop(
    w.if(w.gtS(w.get(0), w.get(1)), w.return(w.i32(-1))),
    w.set(
      5,
      w.bitmask(
        w.andV(
          w.eqBytes(w.loadV(w.get(0)), w.get(3)),
          w.eqBytes(w.loadV(w.sub(w.add(w.get(0), w.get(2)), w.i32(1))), w.get(4)),
        ),
      ),
    ),
    w.block(
      w.loop(
        w.brIf(1, w.eqz(w.get(5))),
        w.set(6, w.add(w.get(0), w.ctz(w.get(5)))),
        w.set(5, w.and(w.get(5), w.sub(w.get(5), w.i32(1)))),
        w.if(w.gtS(w.get(6), w.get(1)), w.return(w.i32(-1))),
        w.set(7, zero),
        w.loop(
          w.if(w.eq(w.get(7), w.get(2)), w.return(w.get(6))),
          w.if(
            w.eq(w.load8(w.add(w.get(6), w.get(7))), w.load8(w.get(7), layout.needle)),
            w.set(7, w.add(w.get(7), w.i32(1))),
            w.br(1),
          ),
        ),
        w.br(0),
      ),
    ),
    w.set(0, w.add(w.get(0), w.i32(16))),
    w.br(0),
  ),
  ...w.i32(-1),
];

const { i32, i64, v128 } = wasmTypes;

/** The module's bytes. */
export function assembleTextModule(): Uint8Array<ArrayBuffer> {
  return assembleModule([
    {
      name: "text",
      parameters: 1,
      locals: [...new Array<number>(12).fill(i32), v128, i64, i64, i64, i64],
      body: textBody,
    },
    { name: "hash", parameters: 2, locals: [i32, v128, i64, i64, i64, i64], body: hashBody },
    { name: "unescape", parameters: 3, locals: [v128, i32, i32], body: unescapeBody },
    { name: "find", parameters: 3, locals: [v128, v128, i32, i32, i32], body: findBody },
  ]);
}
