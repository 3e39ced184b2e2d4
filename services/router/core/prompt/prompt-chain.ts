import { hashBlocks, type HashRoot } from "../../../shared/core/block-hash.ts";
import type { PromptTokenizer } from "./model-runtime.ts";
import { PromptPieces } from "./prompt-pieces.ts";
import { LiteralText, PromptText, type Part } from "./prompt-text.ts";

/** A prompt's length and the hashes of its blocks. */
export interface HashedPrompt {
  readonly tokens: number;
  /** Sequence hashes of the full blocks as (lo, hi) pairs. */
  readonly hashes: Uint32Array;
}

/** Where a chain of blocks stands behind some part of a prompt that ends with an added token, or behind its last part. */
interface ChainState {
  readonly tokens: number;
  /** Hash of the last full block. */
  readonly lo: number;
  readonly hi: number;
  /** Tokens behind the last full block. */
  readonly tail: Uint32Array;
  /** Hashes of the blocks that were filled since the state before this one, as (lo, hi) pairs. */
  readonly hashes: Uint32Array;
  /** What the last part spells behind its last added token. */
  readonly carry: string;
}

/** What a node of the tree stands for: a text by its number, any other part by itself. */
type PartKey = number | string | LiteralText;

/** Children beyond this many are looked up in a map. */
const childrenListedMax = 6;

/** Memory of a node, and of a state beside its arrays, bytes; estimates. */
const nodeBytes = 120;
const stateBytes = 320;

/** A beginning of prompts, by the parts it is made of. */
class PrefixNode {
  readonly key: PartKey;
  readonly #listed: PrefixNode[] = [];
  #mapped: Map<PartKey, PrefixNode> | undefined;
  /** When all before and in this part is tokenised. */
  state: ChainState | undefined;
  /** When the prompt ends here. */
  end: ChainState | undefined;

  constructor(key: PartKey) {
    this.key = key;
  }

  find(key: PartKey): PrefixNode | undefined {
    if (this.#mapped !== undefined) return this.#mapped.get(key);
    const listed = this.#listed;
    for (let i = 0; i < listed.length; i++) {
      const child = listed[i] as PrefixNode;
      if (child.key === key) return child;
    }
    return undefined;
  }

  add(key: PartKey): PrefixNode {
    const child = new PrefixNode(key);
    if (this.#mapped !== undefined) this.#mapped.set(key, child);
    else {
      this.#listed.push(child);
      if (this.#listed.length > childrenListedMax) {
        this.#mapped = new Map(this.#listed.map((node) => [node.key, node]));
        this.#listed.length = 0;
      }
    }
    return child;
  }
}

/** Most roots of chains that are kept apart. */
const rootsMax = 64;

/**
 * Block hashes of prompts given as parts. Prompts are cut at the added tokens that the template spells, and how the chain of
 * blocks stands at these cuts is remembered in a tree of prompt beginnings, so that only what follows the longest known
 * beginning is tokenised and hashed. Holds `bytesMax` at most, by estimate; when that is reached it begins anew, which costs
 * each conversation one more hashing of what it has.
 */
export class PromptChain {
  readonly #pieces: PromptPieces;
  readonly #bytesMax: number;
  readonly #roots = new Map<string, PrefixNode>();
  #bytes = 0;
  #ids = new Uint32Array(1 << 12);
  #count = 0;
  #piece: (PromptText | string)[] = [];

  constructor(tokenizer: PromptTokenizer, options: { readonly bytesMax: number }) {
    this.#pieces = new PromptPieces(tokenizer);
    this.#bytesMax = options.bytesMax;
  }

  /** Length and block hashes of the prompt that `parts` make up. */
  read(parts: readonly Part[], root: HashRoot, blockSizeTokens: number): HashedPrompt {
    let node = this.#root(root, blockSizeTokens);
    let state: ChainState = node.state ?? start(root);
    const found: Uint32Array[] = [];
    let next = 0;
    /** The node, and how many parts it covers, of the last state that was found. */
    let at = node;
    let covered = 0;
    while (next < parts.length) {
      const child = node.find(keyOf(parts[next] as Part));
      if (child === undefined) break;
      node = child;
      next++;
      if (node.state !== undefined) {
        state = node.state;
        found.push(state.hashes);
        at = node;
        covered = next;
      }
    }
    if (next === parts.length && node.end !== undefined) {
      found.push(node.end.hashes);
      return { tokens: node.end.tokens, hashes: joined(found) };
    }
    const tokens = this.#extend(at, state, parts, covered, { found, blockSizeTokens });
    return { tokens, hashes: joined(found) };
  }

  #root(root: HashRoot, blockSizeTokens: number): PrefixNode {
    const key = `${root.lo} ${root.hi} ${blockSizeTokens}`;
    let node = this.#roots.get(key);
    if (node === undefined || this.#bytes > this.#bytesMax) {
      if (this.#bytes > this.#bytesMax || this.#roots.size >= rootsMax) {
        this.#roots.clear();
        this.#bytes = 0;
      }
      node = new PrefixNode("");
      this.#roots.set(key, node);
    }
    return node;
  }

  /** Tokenises and hashes `parts` from `from` on, behind `node`. Adds hashes to `found`; returns the prompt's length. */
  #extend(
    first: PrefixNode,
    before: ChainState,
    parts: readonly Part[],
    from: number,
    to: { readonly found: Uint32Array[]; readonly blockSizeTokens: number },
  ): number {
    let node = first;
    let state = before;
    this.#begin(state);
    for (let i = from; i < parts.length; i++) {
      const part = parts[i] as Part;
      const key = keyOf(part);
      let child = node.find(key);
      if (child === undefined) {
        child = node.add(key);
        this.#bytes += nodeBytes + (typeof key === "string" ? key.length : 0);
      }
      node = child;
      if (!(part instanceof LiteralText)) {
        this.#piece.push(part);
        continue;
      }
      const carry = this.#literal(part);
      state = this.#close(state, carry, to.blockSizeTokens);
      node.state = state;
      to.found.push(state.hashes);
      this.#begin(state);
    }
    this.#flush();
    const end = this.#close(state, "", to.blockSizeTokens);
    node.end = end;
    to.found.push(end.hashes);
    return end.tokens;
  }

  #begin({ tail, carry }: ChainState): void {
    this.#count = 0;
    this.#append(tail);
    this.#piece.length = 0;
    if (carry !== "") this.#piece.push(carry);
  }

  /** Ends the piece at hand at each token of `literal`; returns what is left behind the last one. */
  #literal({ texts, tokens }: LiteralText): string {
    for (let i = 0; i < tokens.length; i++) {
      const text = texts[i] as string;
      if (text !== "") this.#piece.push(text);
      this.#flush();
      this.#room(1);
      this.#ids[this.#count++] = tokens[i] as number;
    }
    return texts[tokens.length] as string;
  }

  #close(before: ChainState, carry: string, blockSizeTokens: number): ChainState {
    const ids = this.#ids.subarray(0, this.#count);
    const hashes = hashBlocks(before, ids, blockSizeTokens);
    const blocks = hashes.length / 2;
    const tail = ids.slice(blocks * blockSizeTokens);
    this.#bytes += stateBytes + 4 * (hashes.length + tail.length);
    return {
      tokens: before.tokens - before.tail.length + ids.length,
      lo: blocks === 0 ? before.lo : (hashes[2 * blocks - 2] as number),
      hi: blocks === 0 ? before.hi : (hashes[2 * blocks - 1] as number),
      tail,
      hashes,
      carry,
    };
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

function start({ lo, hi }: HashRoot): ChainState {
  return { tokens: 0, lo, hi, tail: none, hashes: none, carry: "" };
}

const none = new Uint32Array(0);

function keyOf(part: Part): PartKey {
  return part instanceof PromptText ? part.id : part;
}

function joined(arrays: readonly Uint32Array[]): Uint32Array {
  let length = 0;
  for (const array of arrays) length += array.length;
  const all = new Uint32Array(length);
  let at = 0;
  for (const array of arrays) {
    all.set(array, at);
    at += array.length;
  }
  return all;
}
