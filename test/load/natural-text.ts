import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { respelled, WordCounts } from "../support/respelling.ts";

const wanted = /\.(md|txt|ts|mts|js|mjs|cjs|json|h|c|cc|cpp|py|proto|css|html)$/i;
const sizeMin = 1_000;
const sizeMax = 10_000_000;
/** Longer lines on average are minified code or data, which nobody puts into a chat. */
const lineLengthMax = 200;

/**
 * Text that people wrote: the readmes, sources and declarations of installed packages, each file once, in an
 * order fixed by the seed, without downloads. When all have been handed out it goes on with further editions of them, in
 * which every word that is not a frequent one is spelled anew: as unknown to any cache as the first time.
 */
export class NaturalText {
  readonly #paths: string[] = [];
  readonly #digests = new Set<string>();
  readonly #words = new WordCounts();
  #nextPath = 0;
  #text = "";
  #at = 0;
  /** How often all files have been used up; above 0 words are spelled anew. */
  wraps = 0;

  constructor(root: string, seed: number) {
    const visit = (folder: string): void => {
      for (const entry of readdirSync(folder, { withFileTypes: true })) {
        const path = join(folder, entry.name);
        if (entry.isDirectory()) visit(path);
        else if (entry.isFile() && wanted.test(entry.name)) this.#paths.push(path);
      }
    };
    visit(root);
    this.#paths.sort();
    const random = new SeededRandom(seed);
    for (let i = this.#paths.length - 1; i > 0; i--) {
      const other = random.int(i + 1);
      const path = this.#paths[i] as string;
      this.#paths[i] = this.#paths[other] as string;
      this.#paths[other] = path;
    }
  }

  /** The next `size` UTF-16 units, fewer at the end of a file, never none. */
  take(size: number): string {
    while (this.#at >= this.#text.length) this.#openNext();
    const piece = this.#text.slice(this.#at, this.#at + size);
    this.#at += piece.length;
    return piece.toWellFormed();
  }

  #openNext(): void {
    for (;;) {
      if (this.#nextPath >= this.#paths.length) {
        this.#nextPath = 0;
        this.#digests.clear();
        this.wraps++;
        if (this.wraps > 20)
          throw new Error("no readable text was found, or all spellings are used");
      }
      const path = this.#paths[this.#nextPath++] as string;
      const { size } = statSync(path);
      if (size < sizeMin || size > sizeMax) continue;
      const bytes = readFileSync(path);
      const digest = createHash("sha1").update(bytes).digest("base64");
      if (this.#digests.has(digest)) continue;
      this.#digests.add(digest);
      const text = bytes.toString("utf8");
      if (text.length / text.split("\n").length > lineLengthMax) continue;
      if (this.wraps === 0) this.#words.add(text);
      this.#text = this.wraps === 0 ? text : respelled(text, this.#words, this.wraps);
      this.#at = 0;
      return;
    }
  }
}
