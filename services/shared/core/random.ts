/**
 * Seeded generator (sfc32) for cores, tests and simulation: the same seed gives the same draws.
 * Use `fork` for one stream per purpose, so that a draw added here changes nothing there.
 * Not for secrets.
 */
export class SeededRandom {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;
  readonly #seed: number;

  constructor(seed: number) {
    this.#seed = seed >>> 0;
    this.#a = 0x9e3779b9 ^ this.#seed;
    this.#b = 0x243f6a88 + Math.imul(this.#seed, 0x85ebca6b);
    this.#c = 0xb7e15162 ^ (Math.floor(seed / 0x1_0000_0000) >>> 0);
    for (let i = 0; i < 12; i++) this.#step();
  }

  /** A number in [0, 1). */
  next(): number {
    return this.#step() / 0x1_0000_0000;
  }

  /** A whole number in [0, maxExclusive). */
  int(maxExclusive: number): number {
    return Math.floor(this.next() * maxExclusive);
  }

  /** An independent stream that depends on the seed and the name alone. */
  fork(name: string): SeededRandom {
    let hash = 0x811c9dc5;
    for (let i = 0; i < name.length; i++) {
      hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
    }
    return new SeededRandom((this.#seed ^ hash) >>> 0);
  }

  #step(): number {
    const t = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + t;
    return t >>> 0;
  }
}
