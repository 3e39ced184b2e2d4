import type { HashRoot } from "../../../shared/core/block-hash.ts";
import { hashesOf, noBlocks, withBlocks, type HashedBlocks } from "./hash-run.ts";
import type { PromptTokenizer } from "./model-runtime.ts";
import { PrefixTable } from "./prefix-table.ts";
import { PromptPieces } from "./prompt-pieces.ts";
import type { PromptText } from "./prompt-text.ts";
import { LiteralText } from "./rendered-parts.ts";

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

/** Where a chain of blocks stands behind some part of a prompt, or behind its last part. */
interface ChainState {
  readonly blocks: HashedBlocks;
  /** Tokens of the blocks and behind them. */
  readonly tokens: number;
  readonly tail: Uint32Array;
  /** What has been spelled behind the last added token. */
  readonly carry: string;
}

/** Memory of a node, and of a state beside its arrays, bytes; estimates. */
const nodeBytes = 48;
const stateBytes = 400;

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
  /** By node: where the chain stands when its connector cuts, and when a prompt ends there. */
  #states: (ChainState | undefined)[] = [];
  #ends: (ChainState | undefined)[] = [];
  #bytes = 0;
  #lastRoot: HashRoot | undefined;
  #lastBlockSize = 0;
  #lastNode = 0;
  #ids = new Uint32Array(1 << 12);
  #count = 0;
  readonly #piece: (PromptText | string)[] = [];

  constructor(tokenizer: PromptTokenizer, options: { readonly bytesMax: number }) {
    this.#pieces = new PromptPieces(tokenizer);
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
      this.#bytes += nodeBytes + 4 * key.length;
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
    const states = this.#states;
    for (let i = 0; i < links.length; i++) {
      const link = links[i] as Link;
      node = table.find(node, idOf(link, texts), link.connector.id);
      if (node < 0) break;
      if (states[node] !== undefined) {
        known = node;
        covered = i + 1;
      }
    }
    const end = node < 0 ? undefined : this.#ends[node];
    if (end !== undefined) return { tokens: end.tokens, hashes: hashesOf(end.blocks) };
    chain.bind();
    return this.#extend(known, links, texts, { covered, ...chain });
  }

  #root(root: HashRoot, blockSizeTokens: number): number {
    const bytes = this.#bytes + this.#table.bytes;
    if (bytes > this.#bytesMax || this.#roots.size > rootsMax) this.#clear();
    if (root === this.#lastRoot && blockSizeTokens === this.#lastBlockSize) return this.#lastNode;
    const key = `${root.lo} ${root.hi} ${blockSizeTokens}`;
    let node = this.#roots.get(key);
    if (node === undefined) {
      const start = { blocks: noBlocks(), tokens: 0, tail: new Uint32Array(0), carry: "" };
      node = this.#node(start);
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
    this.#states = [];
    this.#ends = [];
    this.#lastRoot = undefined;
    this.#bytes = 0;
  }

  #node(state: ChainState | undefined): number {
    // No node is numbered 0.
    if (this.#states.length === 0) {
      this.#states.push(undefined);
      this.#ends.push(undefined);
    }
    this.#ends.push(undefined);
    this.#bytes += nodeBytes;
    return this.#states.push(state) - 1;
  }

  /** Tokenises and hashes the links behind a node. */
  #extend(
    first: number,
    links: readonly Link[],
    texts: readonly PromptText[],
    chain: {
      readonly covered: number;
      readonly root: HashRoot;
      readonly blockSizeTokens: number;
    },
  ): HashedPrompt {
    let node = first;
    let state = this.#states[first] as ChainState;
    this.#begin(state);
    for (let i = chain.covered; i < links.length; i++) {
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
        next = this.#node(undefined);
        this.#table.add(node, text, connector.id, next);
      }
      node = next;
      if (!connector.cuts) continue;
      state = this.#close(state, connector.carry, chain);
      this.#states[node] = state;
      this.#begin(state);
    }
    this.#flush();
    const end = this.#close(state, "", chain);
    this.#ends[node] = end;
    return { tokens: end.tokens, hashes: hashesOf(end.blocks) };
  }

  #begin({ tail, carry }: ChainState): void {
    this.#count = 0;
    this.#append(tail);
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

  #close(
    before: ChainState,
    carry: string,
    chain: { readonly root: HashRoot; readonly blockSizeTokens: number },
  ): ChainState {
    const { root, blockSizeTokens } = chain;
    const ids = this.#ids.subarray(0, this.#count);
    const blocks = withBlocks(before.blocks, root, ids, {
      blockSizeTokens,
      grown: (bytes) => {
        this.#bytes += bytes;
      },
    });
    const tail = ids.slice((blocks.blocks - before.blocks.blocks) * blockSizeTokens);
    this.#bytes += stateBytes + 4 * tail.length;
    return { blocks, tokens: before.tokens - before.tail.length + ids.length, tail, carry };
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
