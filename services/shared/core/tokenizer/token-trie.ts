import type { TokenStarts } from "./word-run-module.ts";
import type { WordRuns } from "./word-runs.ts";

/**
 * Added tokens (such as `<|im_end|>`) as a trie over bytes: node n's children are entries
 * `256 × n … 256 × n + 255` of `children` (0 = none), its token is `tokenAt[n]` (-1 = none).
 */
export interface TokenTrie {
  readonly children: Uint16Array<ArrayBuffer>;
  readonly tokenAt: Int32Array<ArrayBuffer>;
  /** Length of the longest token, bytes. */
  readonly tokenSizeMax: number;
}

/** Nodes a trie can have; node numbers are 16 bits. Thousands of reserved tokens share most of theirs. */
export const trieNodesMax = 0xffff;

/** Builds the trie, or returns undefined when it would have more than `trieNodesMax` nodes. */
export function buildTokenTrie(
  tokens: readonly { readonly bytes: Uint8Array; readonly id: number }[],
): TokenTrie | undefined {
  const edges = new Map<number, number>();
  const ids = [-1];
  for (const { bytes, id } of tokens) {
    let node = 0;
    for (const byte of bytes) {
      const edge = 256 * node + byte;
      let child = edges.get(edge);
      if (child === undefined) {
        child = ids.push(-1) - 1;
        edges.set(edge, child);
      }
      node = child;
    }
    ids[node] = id;
  }
  if (ids.length > trieNodesMax) return undefined;
  const children = new Uint16Array(256 * ids.length);
  for (const [edge, child] of edges) children[edge] = child;
  return {
    children,
    tokenAt: Int32Array.from(ids),
    tokenSizeMax: Math.max(0, ...tokens.map((token) => token.bytes.length)),
  };
}

/** The tokens of a trie, each once, as bytes. */
export function tokensOf(trie: TokenTrie): { readonly id: number; readonly bytes: Uint8Array }[] {
  const found: { readonly id: number; readonly bytes: Uint8Array }[] = [];
  const walk = (node: number, bytes: readonly number[]): void => {
    const id = trie.tokenAt[node] ?? -1;
    if (id >= 0) found.push({ id, bytes: Uint8Array.from(bytes) });
    for (let byte = 0; byte < 256; byte++) {
      const child = trie.children[256 * node + byte] ?? 0;
      if (child !== 0) walk(child, [...bytes, byte]);
    }
  };
  walk(0, []);
  return found;
}

/** Most bytes that are told apart at each of the first two places of a token. */
const startBytesMax = 8;

/** What the tokens of a trie begin with; nothing where that is too varied to be looked for at once. */
export function tokenStarts({ children, tokenAt }: TokenTrie): TokenStarts | undefined {
  const bytesOf = (node: number): number[] =>
    Array.from({ length: 256 }, (_, byte) => byte).filter(
      (byte) => children[256 * node + byte] !== 0,
    );
  const first = bytesOf(0);
  const nodes = first.map((byte) => children[byte] as number);
  const isByte = nodes.some((node) => (tokenAt[node] as number) >= 0);
  const second = isByte ? [] : [...new Set(nodes.flatMap(bytesOf))];
  return first.length > startBytesMax || second.length > startBytesMax
    ? undefined
    : { first, second };
}

/** Finds added tokens in text: the leftmost one, and of those that start there the longest. */
export class TokenScanner {
  readonly #trie: TokenTrie;
  /** Start of the token found last. */
  start = 0;
  /** End of the token found last (exclusive). */
  end = 0;

  constructor(trie: TokenTrie) {
    this.#trie = trie;
  }

  /**
   * The id of the first added token in `[from … to)` of the text, with `start` and `end` set, or -1. Linear
   * in the text times the longest prefix of a token that repeats in it.
   */
  find(text: WordRuns, from: number, to: number): number {
    const { children, tokenAt, tokenSizeMax } = this.#trie;
    if (tokenSizeMax === 0) return -1;
    const { bytes } = text;
    for (let at = text.mark(from, to); at < to; at = text.mark(at + 1, to)) {
      let found = -1;
      let node = children[bytes[at] as number] as number;
      for (let end = at + 1; node !== 0; end++) {
        const id = tokenAt[node] as number;
        if (id >= 0) {
          found = id;
          this.start = at;
          this.end = end;
        }
        if (end >= to) break;
        node = children[256 * node + (bytes[end] as number)] as number;
      }
      if (found >= 0) return found;
    }
    return -1;
  }
}
