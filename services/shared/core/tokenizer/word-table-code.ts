import { wasm as w, type Code } from "../wasm/wasm-assembler.ts";

/**
 * A table of words with their tokens, as code for a module: sets of two entries, each with everything in one place, so that
 * a look-up costs one cache miss.
 *
 * An entry is vectors of sixteen bytes: the word's bytes, zeros, and in the last byte how many; then as many vectors of
 * tokens, of three bytes each; in the fourth byte of the last how many, in that of the last but one whether the word was
 * met again.
 */
export interface WordTable {
  /** Where it is in memory. */
  readonly at: number;
  /** Vectors of a word. */
  readonly vectors: 1 | 2;
  /** Logarithm of how many sets it has. */
  readonly setBits: number;
}

/** Longest word of a table, bytes. */
export const wordSizeMax = ({ vectors }: WordTable): number => 16 * vectors - 1;
/** Most tokens of a word. */
export const tokensMax = ({ vectors }: WordTable): number => 4 * vectors;
/** Size of a table, bytes. */
export const tableSize = ({ vectors, setBits }: WordTable): number => 2 ** setBits * 64 * vectors;

/** Where tables find what they are keyed with. */
export interface WordTableKeys {
  /** Four numbers of 64 bits: starting value and multiplier (odd), twice. */
  readonly key: number;
  /** 32 bytes 255, then 32 bytes 0. */
  readonly masks: number;
}

/** Locals of a look-up. */
export interface WordLocals {
  readonly from: number;
  readonly size: number;
  /** Of type i32: offset of the entry in the table. */
  readonly entry: number;
  /** Of type i64. */
  readonly hash: number;
  /** Of type v128, as many as the table has vectors. */
  readonly key: readonly number[];
}

const g = w.get;
const keptBytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
const inThreeBytes = [0xff, 0xff, 0xff, 0];

/** Code of look-ups in a table. */
export class WordTableCode {
  readonly #table: WordTable;
  readonly #keys: WordTableKeys;
  readonly #entrySize: number;

  constructor(table: WordTable, keys: WordTableKeys) {
    this.#table = table;
    this.#keys = keys;
    this.#entrySize = 32 * table.vectors;
  }

  /** Takes the word of `size` bytes at `from` into `key`. */
  read({ from, size, key }: WordLocals): Code {
    const last = key[key.length - 1] as number;
    const mask = w.sub(w.i32(this.#keys.masks + 32), g(size));
    return [
      ...key.flatMap((local, i) =>
        w.set(local, w.andV(w.loadV(g(from), 16 * i), w.loadV(mask, 16 * i))),
      ),
      ...w.set(last, w.setByte(15, g(last), g(size))),
    ];
  }

  /** Sets `entry` to the set of the word in `key`. */
  seek({ entry, hash, key }: WordLocals): Code {
    const half = (vector: number, lane: 0 | 1, start: Code): Code =>
      w.mul64(
        w.xor64(w.lane64(lane, g(key[vector] as number)), start),
        w.load64(w.i32(0), this.#keys.key + 16 * lane + 8),
      );
    const starting = (lane: 0 | 1): Code => w.load64(w.i32(0), this.#keys.key + 16 * lane);
    const fold = w.set(hash, w.xor64(g(hash), w.shrU64(g(hash), w.i64(32n))));
    return [
      ...key.flatMap((_, i) => [
        ...w.set(
          hash,
          w.add64(half(i, 0, i === 0 ? starting(0) : g(hash)), half(i, 1, starting(1))),
        ),
        ...fold,
      ]),
      ...w.set(hash, w.mul64(g(hash), w.i64(0x9e3779b97f4a7c15n))),
      ...w.set(
        entry,
        w.shl(
          w.wrap(w.shrU64(g(hash), w.i64(BigInt(64 - this.#table.setBits)))),
          w.i32(Math.log2(2 * this.#entrySize)),
        ),
      ),
    ];
  }

  /** Reads the first byte of the set, so that it is on its way when it is looked into. */
  touch({ entry }: WordLocals): Code {
    return w.load8(g(entry), this.#table.at);
  }

  /** Not zero when the set does not have the word. */
  lacks(locals: WordLocals): Code {
    return w.and(this.#differs(locals, 0), this.#differs(locals, this.#entrySize));
  }

  /** Moves `entry` from its set to the word, which it has. Which of the two it is does not show beforehand: no branch. */
  choose(locals: WordLocals): Code {
    const { entry } = locals;
    const second = w.shl(this.#differs(locals, 0), w.i32(Math.log2(this.#entrySize)));
    return w.set(entry, w.add(g(entry), second));
  }

  /** Writes the tokens of the entry to an address, zeros behind them, and marks its word as met again. */
  put({ entry, key }: WordLocals, to: number): Code {
    return [
      ...key.flatMap((_, i) => {
        const tokens = w.loadV(g(entry), this.#table.at + 16 * (key.length + i));
        return w.storeV(
          g(to),
          i < key.length - 1
            ? tokens
            : w.andV(tokens, w.constV([...keptBytes, ...inThreeBytes, ...inThreeBytes])),
          16 * i,
        );
      }),
      ...w.store8(g(entry), w.i32(1), this.#usedAt),
    ];
  }

  /** How many tokens the entry has. */
  count({ entry }: WordLocals): Code {
    return w.load8(g(entry), this.#table.at + this.#entrySize - 1);
  }

  /**
   * Writes the word into an entry of its set that is free, or else whose word was not met again; of a set whose words were
   * both met again it forgets that, and takes one. Then its tokens go to the address that is the value of this code.
   * `flag`: a local of type i32 that is 0.
   */
  place(locals: WordLocals, flag: number): Code {
    const { entry, hash, key } = locals;
    const size = this.#entrySize;
    const isUsed = (offset: number): Code => w.load8(g(entry), this.#usedAt + offset);
    const isTaken = (offset: number): Code =>
      w.load8(g(entry), this.#table.at + offset + 16 * key.length - 1);
    const forget = (offset: number): Code => w.store8(g(entry), w.i32(0), this.#usedAt + offset);
    return [
      ...this.read(locals),
      ...this.seek(locals),
      ...w.if(
        isTaken(0),
        w.ifElse(
          w.eqz(isTaken(size)),
          this.#second(entry),
          w.if(
            isUsed(0),
            w.if(
              isUsed(size),
              forget(0),
              forget(size),
              w.set(flag, w.and(w.wrap(g(hash)), w.i32(1))),
            ),
            w.if(w.eqz(g(flag)), this.#second(entry)),
          ),
        ),
      ),
      ...key.flatMap((local, i) => w.storeV(g(entry), g(local), this.#table.at + 16 * i)),
      ...w.add(g(entry), w.i32(this.#table.at + 16 * key.length)),
    ];
  }

  /** Writes `count` tokens, which are at `tokens`, to the address that `place` gave. */
  putPlaced(address: number, tokens: number, count: number): Code {
    const { vectors } = this.#table;
    const last = 16 * (vectors - 1);
    return [
      ...(vectors === 1 ? [] : w.storeV(g(address), w.loadV(g(tokens)))),
      ...w.storeV(
        g(address),
        w.andV(
          w.loadV(g(tokens), last),
          w.constV([...keptBytes, ...inThreeBytes, ...inThreeBytes]),
        ),
        last,
      ),
      ...w.store8(g(address), g(count), last + 15),
    ];
  }

  #differs({ entry, key }: WordLocals, offset: number): Code {
    return w.anyTrue(
      key
        .map((local, i) => w.xorV(g(local), w.loadV(g(entry), this.#table.at + offset + 16 * i)))
        .reduce((some, more) => w.orV(some, more)),
    );
  }

  get #usedAt(): number {
    return this.#table.at + this.#entrySize - 5;
  }

  #second(entry: number): Code {
    return w.set(entry, w.add(g(entry), w.i32(this.#entrySize)));
  }
}
