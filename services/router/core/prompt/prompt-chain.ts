import { hashBlocks, type HashRoot } from "../../../shared/core/block-hash.ts";
import type { PromptTokenizer } from "./model-runtime.ts";
import { PromptPieces } from "./prompt-pieces.ts";
import { PromptText, type LiteralText, type Part } from "./prompt-text.ts";

/** A prompt's length and the hashes of its blocks. */
export interface HashedPrompt {
  readonly tokens: number;
  /** Sequence hashes of the full blocks as (lo, hi) pairs. */
  readonly hashes: Uint32Array;
}

/** Where a chain of blocks stands behind some part of a prompt, or behind its last part. */
interface ChainState {
  readonly tokens: number;
  /** Hash of the last full block. */
  readonly lo: number;
  readonly hi: number;
  /** Tokens behind the last full block. */
  readonly tail: Uint32Array;
  /** Hashes of the blocks that were filled since the state before this one, as (lo, hi) pairs. */
  readonly hashes: Uint32Array;
  /** What has been spelled behind the last added token. */
  readonly carry: string;
}

/** Branches beyond this many are looked up in a map. */
const listedMax = 6;

/** Memory of a node, and of a state beside its arrays, bytes; estimates. */
const nodeBytes = 160;
const stateBytes = 320;

/** What leads on from a node, by what comes next. */
class Branches<K, N> {
  #keys: K[] = [];
  #nodes: N[] = [];
  #mapped: Map<K, N> | undefined;

  find(key: K): N | undefined {
    if (this.#mapped !== undefined) return this.#mapped.get(key);
    const keys = this.#keys;
    for (let i = 0; i < keys.length; i++) if (keys[i] === key) return this.#nodes[i];
    return undefined;
  }

  add(key: K, node: N): N {
    if (this.#mapped !== undefined) this.#mapped.set(key, node);
    else if (this.#keys.length < listedMax) {
      this.#keys.push(key);
      this.#nodes.push(node);
    } else {
      this.#mapped = new Map(this.#keys.map((known, i) => [known, this.#nodes[i] as N]));
      this.#mapped.set(key, node);
      this.#keys = [];
      this.#nodes = [];
    }
    return node;
  }
}

/** Parts without a text of the request, as they stand between two such texts. The same parts are the same object. */
class Connector {
  readonly parts: readonly (string | LiteralText)[];
  readonly next = new Branches<string | LiteralText, Connector>();

  constructor(parts: readonly (string | LiteralText)[]) {
    this.parts = parts;
  }
}

/** A beginning of prompts; texts stand in it by their numbers. */
class PrefixNode {
  readonly next = new Branches<number | Connector, PrefixNode>();
  /** When it ends with a connector that has an added token. */
  state: ChainState | undefined;
  /** When a prompt ends here. */
  end: ChainState | undefined;
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
  #connectors = new Connector([]);
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
    let state: ChainState = {
      tokens: 0,
      lo: root.lo,
      hi: root.hi,
      tail: none,
      hashes: none,
      carry: "",
    };
    const units = this.#units(parts);
    const found: Uint32Array[] = [];
    /** The node of the last state that was found, and how many units lead to it. */
    let known = node;
    let covered = 0;
    for (let i = 0; i < units.length; i++) {
      const unit = units[i] as PromptText | Connector;
      const next = node.next.find(unit instanceof PromptText ? unit.id : unit);
      if (next === undefined) break;
      node = next;
      if (node.state !== undefined) {
        state = node.state;
        found.push(state.hashes);
        known = node;
        covered = i + 1;
      }
      if (i === units.length - 1 && node.end !== undefined) {
        found.push(node.end.hashes);
        return { tokens: node.end.tokens, hashes: joined(found) };
      }
    }
    const tokens = this.#extend(known, state, units.slice(covered), { found, blockSizeTokens });
    return { tokens, hashes: joined(found) };
  }

  #root(root: HashRoot, blockSizeTokens: number): PrefixNode {
    if (this.#bytes > this.#bytesMax || this.#roots.size > rootsMax) {
      this.#roots.clear();
      this.#connectors = new Connector([]);
      this.#bytes = 0;
    }
    const key = `${root.lo} ${root.hi} ${blockSizeTokens}`;
    let node = this.#roots.get(key);
    if (node === undefined) {
      node = new PrefixNode();
      this.#roots.set(key, node);
    }
    return node;
  }

  /** Texts, and connectors between them. */
  #units(parts: readonly Part[]): (PromptText | Connector)[] {
    const units: (PromptText | Connector)[] = [];
    const empty = this.#connectors;
    let connector = empty;
    for (const part of parts) {
      if (part instanceof PromptText) {
        if (connector !== empty) units.push(connector);
        units.push(part);
        connector = empty;
        continue;
      }
      const next = connector.next.find(part);
      if (next === undefined) {
        this.#bytes += nodeBytes + 8 * connector.parts.length;
        if (typeof part === "string") this.#bytes += 2 * part.length;
        connector = connector.next.add(part, new Connector([...connector.parts, part]));
      } else connector = next;
    }
    if (connector !== empty) units.push(connector);
    return units;
  }

  /** Tokenises and hashes `units` behind a node. Adds hashes to `found`; returns the prompt's length. */
  #extend(
    first: PrefixNode,
    before: ChainState,
    units: readonly (PromptText | Connector)[],
    to: { readonly found: Uint32Array[]; readonly blockSizeTokens: number },
  ): number {
    let node = first;
    let state = before;
    this.#begin(state);
    for (const unit of units) {
      const key = unit instanceof PromptText ? unit.id : unit;
      let next = node.next.find(key);
      if (next === undefined) {
        next = node.next.add(key, new PrefixNode());
        this.#bytes += nodeBytes;
      }
      node = next;
      if (unit instanceof PromptText) this.#piece.push(unit);
      else if (this.#connect(unit)) {
        // Behind an added token of a connector there are no texts.
        const carry = this.#piece.filter((part) => typeof part === "string").join("");
        state = this.#close(state, carry, to.blockSizeTokens);
        node.state = state;
        to.found.push(state.hashes);
        this.#begin(state);
      }
    }
    this.#flush();
    const end = this.#close(state, "", to.blockSizeTokens);
    node.end = end;
    to.found.push(end.hashes);
    return end.tokens;
  }

  /** Takes a connector in; says whether it has an added token, behind which the piece at hand begins. */
  #connect({ parts }: Connector): boolean {
    let closed = false;
    for (const part of parts) {
      if (typeof part === "string") this.#piece.push(part);
      else {
        closed = true;
        this.#literal(part);
      }
    }
    return closed;
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

const none = new Uint32Array(0);

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
