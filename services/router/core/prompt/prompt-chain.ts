import type { HashRoot } from "../../../shared/core/block-hash.ts";
import { ChainStates } from "./chain-states.ts";
import type { PromptTokenizer } from "./model-runtime.ts";
import { PrefixTable } from "./prefix-table.ts";
import { PromptPieces } from "./prompt-pieces.ts";
import type { PromptText } from "./prompt-text.ts";
import { LiteralText } from "./rendered-parts.ts";
import type { TokenRing } from "./token-ring.ts";

/** A prompt's length and the hashes of its blocks. */
export interface HashedPrompt {
  readonly tokens: number;
  /** Sequence hashes of the full blocks as (lo, hi) pairs; not to be written to. */
  readonly hashes: Uint32Array;
}

/** Parts without a text of the request, as they stand between two such texts. */
export interface Connector {
  readonly id: number;
  readonly parts: readonly (string | LiteralText)[];
  /** Whether it has an added token. */
  readonly cuts: boolean;
  /** What it spells behind its last added token. */
  readonly carry: string;
}

/** A text of a request, by its number (none when negative), and what stands behind it. */
export interface Link {
  readonly text: number;
  readonly connector: Connector;
}

/** Memory of a connector beside its parts, bytes; an estimate. */
const connectorBytes = 160;
/** Links of a prompt that there is room for at first. */
const linksMin = 1 << 8;

/** Most roots of chains that are kept apart. */
const rootsMax = 64;

/**
 * Block hashes of prompts given as texts and what stands between them. Prompts are cut at the added tokens that the template
 * spells, and how the chain of blocks stands at these cuts is remembered in a tree of prompt beginnings, so that only what
 * follows the longest known beginning is tokenised and hashed. Holds `bytesMax` at most, by estimate; when that is reached
 * it begins anew, which costs each conversation one more hashing of what it has.
 */
export class PromptChain {
  readonly #pieces: PromptPieces;
  readonly #bytesMax: number;
  readonly #roots = new Map<string, number>();
  readonly #connectors = new Map<string, Connector>();
  #connectorsMade = 0;
  readonly #table = new PrefixTable();
  readonly #states = new ChainStates();
  #connectorsBytes = 0;
  #lastRoot: HashRoot | undefined;
  #lastBlockSize = 0;
  #lastStart = 0;
  /** Hashes of the beginnings of the prompt at hand, in two halves: of the first i links at i. */
  #a = new Int32Array(linksMin);
  #b = new Int32Array(linksMin);
  #ids = new Uint32Array(1 << 12);
  #count = 0;
  readonly #piece: (PromptText | string)[] = [];

  constructor(
    tokenizer: PromptTokenizer,
    options: { readonly bytesMax: number; readonly tokens: TokenRing },
  ) {
    this.#pieces = new PromptPieces(tokenizer, options.tokens);
    this.#bytesMax = options.bytesMax;
  }

  /** What stands between two texts; the same parts are the same object as long as they are remembered. */
  connector(parts: readonly (string | LiteralText)[]): Connector {
    const key = JSON.stringify(
      parts.map((part) => (typeof part === "string" ? part : [part.text])),
    );
    let connector = this.#connectors.get(key);
    if (connector === undefined) {
      const cut = parts.findLastIndex((part) => part instanceof LiteralText);
      const behind = parts.slice(cut + 1).filter((part) => typeof part === "string");
      const last = parts[cut];
      connector = {
        id: this.#connectorsMade++,
        parts,
        cuts: cut >= 0,
        carry: last instanceof LiteralText ? (last.texts.at(-1) ?? "") + behind.join("") : "",
      };
      this.#connectors.set(key, connector);
      this.#connectorsBytes += connectorBytes + 4 * key.length;
    }
    return connector;
  }

  /**
   * Length and block hashes of a prompt. `bind` is called before texts are looked into, which only new prompts ask for.
   */
  read(
    links: readonly Link[],
    texts: readonly PromptText[],
    chain: { readonly root: HashRoot; readonly blockSizeTokens: number; readonly bind: () => void },
  ): HashedPrompt {
    const start = this.#start(chain.root, chain.blockSizeTokens);
    this.#hash(links, texts, start);
    const a = this.#a;
    const b = this.#b;
    const { length } = links;
    const end = this.#table.end(a[length] as number, b[length] as number);
    if (end !== 0) return this.#prompt(end);
    let state = start;
    let covered = length;
    for (; covered > 0; covered--) {
      const known = this.#table.state(a[covered] as number, b[covered] as number);
      if (known === 0) continue;
      state = known;
      break;
    }
    chain.bind();
    return this.#extend(state, covered, links, texts, chain);
  }

  /** Hashes all beginnings of a prompt. */
  #hash(links: readonly Link[], texts: readonly PromptText[], start: number): void {
    if (links.length >= this.#a.length) {
      this.#a = new Int32Array(2 * links.length);
      this.#b = new Int32Array(2 * links.length);
    }
    let a = Math.imul(start, 0x9e3779b1);
    let b = Math.imul(start, 0x85ebca77) ^ 0x165667b1;
    for (let i = 0; i < links.length; i++) {
      const { text, connector } = links[i] as Link;
      const id = text < 0 ? -1 : (texts[text] as PromptText).id;
      a = Math.imul(a ^ id, 0x9e3779b1);
      b = Math.imul(b ^ connector.id, 0x85ebca77);
      a ^= (b >>> 15) + connector.id;
      b ^= (a >>> 13) + id;
      a = Math.imul(a ^ (a >>> 16), 0x7feb352d);
      b = Math.imul(b ^ (b >>> 15), 0x846ca68b);
      a ^= (a >>> 15) ^ b;
      b ^= a >>> 14;
      this.#a[i + 1] = a;
      this.#b[i + 1] = b;
    }
  }

  #prompt(state: number): HashedPrompt {
    return { tokens: this.#states.tokens(state), hashes: this.#states.hashes(state) };
  }

  /** The state before a chain's first token. */
  #start(root: HashRoot, blockSizeTokens: number): number {
    if (this.#bytes > this.#bytesMax || this.#roots.size > rootsMax) this.#clear();
    if (root === this.#lastRoot && blockSizeTokens === this.#lastBlockSize) return this.#lastStart;
    const key = `${root.lo} ${root.hi} ${blockSizeTokens}`;
    let start = this.#roots.get(key);
    if (start === undefined) {
      start = this.#states.start();
      this.#roots.set(key, start);
    }
    this.#lastRoot = root;
    this.#lastBlockSize = blockSizeTokens;
    this.#lastStart = start;
    return start;
  }

  #clear(): void {
    this.#roots.clear();
    this.#connectors.clear();
    this.#table.clear();
    this.#states.clear();
    this.#connectorsBytes = 0;
    this.#lastRoot = undefined;
  }

  get #bytes(): number {
    return this.#states.bytes + this.#table.bytes + this.#connectorsBytes;
  }

  /** Tokenises and hashes the links behind the first `covered`, which leave the chain in a state. */
  #extend(
    before: number,
    covered: number,
    links: readonly Link[],
    texts: readonly PromptText[],
    chain: { readonly root: HashRoot; readonly blockSizeTokens: number },
  ): HashedPrompt {
    const states = this.#states;
    const a = this.#a;
    const b = this.#b;
    let state = before;
    this.#begin(state, covered === 0 ? "" : (links[covered - 1] as Link).connector.carry);
    for (let i = covered; i < links.length; i++) {
      const link = links[i] as Link;
      const { connector } = link;
      if (link.text >= 0) this.#piece.push(texts[link.text] as PromptText);
      for (const part of connector.parts) {
        if (typeof part === "string") this.#piece.push(part);
        else this.#literal(part);
      }
      if (!connector.cuts) continue;
      state = states.next(state, this.#ids, this.#count, chain);
      this.#table.setState(a[i + 1] as number, b[i + 1] as number, state);
      this.#begin(state, connector.carry);
    }
    this.#flush();
    const end = states.next(state, this.#ids, this.#count, chain);
    this.#table.setEnd(a[links.length] as number, b[links.length] as number, end);
    return this.#prompt(end);
  }

  /** Begins behind a state, with what has been spelled since its last token. */
  #begin(state: number, carry: string): void {
    this.#count = 0;
    const length = this.#states.tailLength(state);
    this.#room(length);
    this.#states.putTail(state, this.#ids);
    this.#count = length;
    this.#piece.length = 0;
    if (carry !== "") this.#piece.push(carry);
  }

  /** Ends the piece at hand at each token of `literal`. */
  #literal({ texts, tokens }: LiteralText): void {
    for (let i = 0; i <= tokens.length; i++) {
      const text = texts[i] as string;
      if (text !== "") this.#piece.push(text);
      if (i === tokens.length) return;
      this.#flush();
      this.#room(1);
      this.#ids[this.#count++] = tokens[i] as number;
    }
  }

  #flush(): void {
    if (this.#piece.length === 0) return;
    this.#append(this.#pieces.ids(this.#piece));
    this.#piece.length = 0;
  }

  #room(more: number): void {
    const wanted = this.#count + more;
    if (wanted <= this.#ids.length) return;
    const larger = new Uint32Array(Math.max(wanted, 2 * this.#ids.length));
    larger.set(this.#ids.subarray(0, this.#count));
    this.#ids = larger;
  }

  #append(ids: Uint32Array): void {
    this.#room(ids.length);
    if (ids.length > 16) this.#ids.set(ids, this.#count);
    else for (let i = 0; i < ids.length; i++) this.#ids[this.#count + i] = ids[i] as number;
    this.#count += ids.length;
  }
}
