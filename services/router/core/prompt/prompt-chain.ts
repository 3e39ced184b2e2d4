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
/** Nodes that there is room for at first. */
const nodesMin = 1 << 8;

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
  /** By node: the state behind the last added token of its connector, and that of a prompt that ends there; 0 for none. */
  #nodes = new Int32Array(2 * nodesMin);
  /** No node is numbered 0. */
  #nodeCount = 1;
  #connectorsBytes = 0;
  #lastRoot: HashRoot | undefined;
  #lastBlockSize = 0;
  #lastNode = 0;
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
      const behind = parts.slice(cut + 1).join("");
      const last = parts[cut];
      connector = {
        id: this.#connectorsMade++,
        parts,
        cuts: cut >= 0,
        carry: last instanceof LiteralText ? (last.texts.at(-1) ?? "") + behind : "",
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
    let node = this.#root(chain.root, chain.blockSizeTokens);
    /** The last node with a state, and how many links lead to it. */
    let known = node;
    let covered = 0;
    const table = this.#table;
    const nodes = this.#nodes;
    for (let i = 0; i < links.length; i++) {
      const link = links[i] as Link;
      node = table.find(node, idOf(link, texts), link.connector.id);
      if (node < 0) break;
      if (nodes[2 * node] !== 0) {
        known = node;
        covered = i + 1;
      }
    }
    const end = node < 0 ? 0 : (nodes[2 * node + 1] as number);
    if (end !== 0) return this.#prompt(end);
    chain.bind();
    return this.#extend(known, covered, links, texts, chain);
  }

  #prompt(state: number): HashedPrompt {
    return { tokens: this.#states.tokens(state), hashes: this.#states.hashes(state) };
  }

  #root(root: HashRoot, blockSizeTokens: number): number {
    if (this.#bytes > this.#bytesMax || this.#roots.size > rootsMax) this.#clear();
    if (root === this.#lastRoot && blockSizeTokens === this.#lastBlockSize) return this.#lastNode;
    const key = `${root.lo} ${root.hi} ${blockSizeTokens}`;
    let node = this.#roots.get(key);
    if (node === undefined) {
      node = this.#node();
      this.#nodes[2 * node] = this.#states.start();
      this.#roots.set(key, node);
    }
    this.#lastRoot = root;
    this.#lastBlockSize = blockSizeTokens;
    this.#lastNode = node;
    return node;
  }

  #clear(): void {
    this.#roots.clear();
    this.#connectors.clear();
    this.#table.clear();
    this.#states.clear();
    this.#nodes = new Int32Array(2 * nodesMin);
    this.#nodeCount = 1;
    this.#connectorsBytes = 0;
    this.#lastRoot = undefined;
  }

  get #bytes(): number {
    const { byteLength } = this.#nodes;
    return this.#states.bytes + this.#table.bytes + byteLength + this.#connectorsBytes;
  }

  #node(): number {
    const node = this.#nodeCount++;
    if (2 * node >= this.#nodes.length) {
      const larger = new Int32Array(2 * this.#nodes.length);
      larger.set(this.#nodes);
      this.#nodes = larger;
    }
    return node;
  }

  /** Tokenises and hashes the links behind a node. */
  #extend(
    first: number,
    covered: number,
    links: readonly Link[],
    texts: readonly PromptText[],
    chain: { readonly root: HashRoot; readonly blockSizeTokens: number },
  ): HashedPrompt {
    const states = this.#states;
    let node = first;
    let state = this.#nodes[2 * first] as number;
    this.#begin(state, covered === 0 ? "" : (links[covered - 1] as Link).connector.carry);
    for (let i = covered; i < links.length; i++) {
      const link = links[i] as Link;
      const { connector } = link;
      const text = idOf(link, texts);
      if (link.text >= 0) this.#piece.push(texts[link.text] as PromptText);
      for (const part of connector.parts) {
        if (typeof part === "string") this.#piece.push(part);
        else this.#literal(part);
      }
      let next = this.#table.find(node, text, connector.id);
      if (next < 0) {
        next = this.#node();
        this.#table.add(node, text, connector.id, next);
      }
      node = next;
      if (!connector.cuts) continue;
      state = states.next(state, this.#ids, this.#count, chain);
      this.#nodes[2 * node] = state;
      this.#begin(state, connector.carry);
    }
    this.#flush();
    const end = states.next(state, this.#ids, this.#count, chain);
    this.#nodes[2 * node + 1] = end;
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

/** The number of a link's text; −1 for none. */
function idOf({ text }: Link, texts: readonly PromptText[]): number {
  return text < 0 ? -1 : (texts[text] as PromptText).id;
}
