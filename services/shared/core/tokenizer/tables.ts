import { MeshError } from "../errors.ts";
import { bytesByCharCode, charsByByte } from "./byte-level.ts";
import {
  addPair,
  createMergeTables,
  createPairTable,
  pairIdMax,
  PairMerger,
  pairsMax,
  type MergeTables,
  type PairTable,
} from "./pair-merger.ts";
import type { SplitRules } from "./split-rules.ts";
import { buildTokenTrie, trieNodesMax, type TokenTrie } from "./token-trie.ts";
import type { AddedToken, BpeModelFile } from "./bpe-model-file.ts";
import { buildClassTable } from "./unicode-classes.ts";
import {
  buildVocabularyWords,
  type VocabularyWordsTables,
  type WordEntry,
} from "./vocabulary-words.ts";

/**
 * Everything `FusedBpe` needs, as typed arrays and plain values, so that a worker thread can build it
 * and hand it over without a copy (`tableBuffers`). Nothing changes them once built. About 20 MB for a
 * vocabulary of 150 000.
 */
export interface TokenizerTables {
  readonly vocabularySize: number;
  readonly splitRules: SplitRules;
  readonly normaliseNfc: boolean;
  /** Whether a word that is a vocabulary entry is that entry, whatever merging would give. */
  readonly ignoreMerges: boolean;
  readonly prefixIds: readonly number[];
  /** Bytes of token i are `tokenBytes[tokenOffsets[i] … tokenOffsets[i + 1])`; empty for unused ids. */
  readonly tokenBytes: Uint8Array<ArrayBuffer>;
  readonly tokenOffsets: Uint32Array<ArrayBuffer>;
  readonly merges: MergeTables;
  readonly words: VocabularyWordsTables;
  readonly classTable: Uint8Array<ArrayBuffer>;
  /** All added tokens. */
  readonly addedTokens: TokenTrie;
  /** Those that are recognised even where control tokens are not. */
  readonly ordinaryAddedTokens: TokenTrie;
}

/** The buffers to put in a transfer list when tables are posted between threads. */
export function tableBuffers(tables: TokenizerTables): ArrayBuffer[] {
  return [
    tables.tokenBytes,
    tables.tokenOffsets,
    tables.merges.byteIds,
    tables.merges.pairs,
    tables.merges.merged,
    tables.merges.bytePairRanks,
    tables.merges.filter,
    tables.words.ofTwoBytes,
    tables.words.short,
    tables.words.long,
    tables.words.hashKey,
    tables.classTable,
    tables.addedTokens.children,
    tables.addedTokens.tokenAt,
    tables.ordinaryAddedTokens.children,
    tables.ordinaryAddedTokens.tokenAt,
  ].map((array) => array.buffer);
}

/** Builds the tables of a checked file. Throws `invalid_request` where its parts contradict each other. */
export function buildTables(file: BpeModelFile, hashKey: Int32Array<ArrayBuffer>): TokenizerTables {
  const tokens = collectTokenBytes(file);
  const merges = createMergeTables(...buildPairs(file), findByteIds(file.vocabulary));
  return {
    vocabularySize: tokens.tokenOffsets.length - 1,
    splitRules: file.splitRules,
    normaliseNfc: file.normaliseNfc,
    ignoreMerges: file.ignoreMerges,
    prefixIds: file.prefixIds,
    ...tokens,
    merges,
    words: findWords(file, tokens, new PairMerger(merges), hashKey),
    classTable: buildClassTable(),
    addedTokens: trieOf(file.addedTokens),
    ordinaryAddedTokens: trieOf(file.addedTokens.filter((token) => !token.special)),
  };
}

interface TokenBytes {
  readonly tokenBytes: Uint8Array<ArrayBuffer>;
  readonly tokenOffsets: Uint32Array<ArrayBuffer>;
}

/** Bytes after the last token, so that eight bytes can be read from any of them. */
const readAheadSize = 8;

function collectTokenBytes(file: BpeModelFile): TokenBytes {
  let size = 0;
  let idMax = -1;
  for (const [token, id] of file.vocabulary) {
    size += token.length;
    idMax = Math.max(idMax, id);
  }
  const encoder = new TextEncoder();
  const added = file.addedTokens.map(({ id, content }) => ({ id, bytes: encoder.encode(content) }));
  for (const { id, bytes } of added) {
    size += bytes.length;
    idMax = Math.max(idMax, id);
  }
  const contents = new Array<string | Uint8Array | undefined>(idMax + 1).fill(undefined);
  for (const [token, id] of file.vocabulary) contents[id] = token;
  for (const { id, bytes } of added) contents[id] = bytes;

  const bytesOf = bytesByCharCode();
  const tokenBytes = new Uint8Array(size + readAheadSize);
  const tokenOffsets = new Uint32Array(idMax + 2);
  let at = 0;
  contents.forEach((content, id) => {
    tokenOffsets[id] = at;
    if (content instanceof Uint8Array) {
      tokenBytes.set(content, at);
      at += content.length;
    } else if (content !== undefined) {
      for (let i = 0; i < content.length; i++) {
        const byte = bytesOf[content.charCodeAt(i)] ?? -1;
        if (byte < 0)
          throw contradiction(`model.vocab: ${JSON.stringify(content)} is not byte-level text`);
        tokenBytes[at++] = byte;
      }
    }
  });
  tokenOffsets[idMax + 1] = at;
  return { tokenBytes, tokenOffsets };
}

function contradiction(message: string): MeshError {
  return new MeshError("invalid_request", `tokenizer.json: ${message}`, { field: "model" });
}

function findByteIds(vocabulary: ReadonlyMap<string, number>): Uint32Array<ArrayBuffer> {
  const ids = new Uint32Array(256);
  charsByByte().forEach((char, byte) => {
    const id = vocabulary.get(char);
    if (id === undefined) {
      throw contradiction(`model.vocab has no token for the single byte ${String(byte)}`);
    }
    ids[byte] = id;
  });
  return ids;
}

/** The ranked pairs, and what each of them becomes. */
function buildPairs(file: BpeModelFile): [PairTable, Int32Array<ArrayBuffer>] {
  if (file.merges.length > pairsMax) {
    throw contradiction(`model.merges holds more than ${String(pairsMax)} pairs`);
  }
  const pairs = createPairTable(file.merges.length);
  const mergedIds = new Int32Array(file.merges.length);
  file.merges.forEach(([leftText, rightText], rank) => {
    const left = file.vocabulary.get(leftText);
    const right = file.vocabulary.get(rightText);
    const merged = file.vocabulary.get(leftText + rightText);
    if (left === undefined || right === undefined || merged === undefined) {
      throw contradiction(
        `model.merges[${String(rank)}] joins ${JSON.stringify([leftText, rightText])}, but one of the parts or the result is not in model.vocab`,
      );
    }
    if (Math.max(left, right, merged) > pairIdMax) {
      throw contradiction(`model.merges[${String(rank)}] has an id above ${String(pairIdMax)}`);
    }
    addPair(pairs, { left, right, rank });
    mergedIds[rank] = merged;
  });
  return [pairs, mergedIds];
}

/** Every vocabulary entry that, as a word, becomes that one token. Few do not: merging misses them. */
function findWords(
  file: BpeModelFile,
  { tokenBytes, tokenOffsets }: TokenBytes,
  merger: PairMerger,
  hashKey: Int32Array<ArrayBuffer>,
): VocabularyWordsTables {
  const entries: WordEntry[] = [];
  for (const id of [...file.vocabulary.values()].sort((a, b) => a - b)) {
    const offset = tokenOffsets[id] as number;
    const end = tokenOffsets[id + 1] as number;
    if (end === offset) continue;
    const count = file.ignoreMerges ? 0 : merger.merge(tokenBytes, offset, end);
    if (file.ignoreMerges || (count === 1 && merger.tokens[0] === id)) {
      entries.push({ offset, size: end - offset, id });
    }
  }
  return buildVocabularyWords(entries, new DataView(tokenBytes.buffer), hashKey);
}

function trieOf(tokens: readonly AddedToken[]): TokenTrie {
  const encoder = new TextEncoder();
  const trie = buildTokenTrie(
    tokens.map(({ content, id }) => ({ bytes: encoder.encode(content), id })),
  );
  if (trie === undefined) {
    throw new MeshError(
      "invalid_request",
      `tokenizer.json: added_tokens need more than ${String(trieNodesMax)} trie nodes`,
      { field: "added_tokens" },
    );
  }
  return trie;
}
