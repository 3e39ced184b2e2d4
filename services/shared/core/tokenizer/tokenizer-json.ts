import { MeshError } from "../errors.ts";
import { buildTables, type TokenizerTables } from "./tables.ts";
import type { AddedToken, BpeModelFile } from "./bpe-model-file.ts";
import { splitRulesOf, type SplitRules } from "./split-rules.ts";

/** Settings of the table build. */
export interface ParseOptions {
  /**
   * Four random 32-bit numbers that key the word table's hash. Servers pass fresh random ones, so that
   * no text can be crafted to make lookups slow; the fixed default is for tests and tools.
   */
  readonly hashKey?: Int32Array<ArrayBuffer>;
}

/**
 * Reads the bytes of a Hugging Face `tokenizer.json` (the `tokenizers` library's format, version 1.0)
 * into tables for `FusedBpe`. Supported: byte-level BPE with the split rules of `split-rules.ts`,
 * no normaliser or NFC. Throws `invalid_request` naming the part that is malformed or unsupported.
 * About 0.5 s of CPU for a vocabulary of 150 000.
 */
export function parseTokenizerJson(json: Uint8Array, options: ParseOptions = {}): TokenizerTables {
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json));
  } catch (cause) {
    throw new MeshError("invalid_request", "tokenizer.json is not JSON", { cause });
  }
  const hashKey = options.hashKey ?? Int32Array.of(0x3c6ef372, 0x1f83d9ab, 0x5be0cd19, 0x510e527f);
  return buildTables(readModelFile(parsed), hashKey);
}

function unsupported(field: string, problem: string): MeshError {
  return new MeshError("invalid_request", `tokenizer.json: ${field} ${problem}`, { field });
}

type JsonObject = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function object(value: unknown, field: string): JsonObject {
  if (!isObject(value)) throw unsupported(field, "is not an object");
  return value;
}

function array(value: unknown, field: string): readonly unknown[] {
  if (!Array.isArray(value)) throw unsupported(field, "is not an array");
  return value;
}

function tokenId(value: unknown, field: string): number {
  if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value < 1 << 24) {
    return value;
  }
  throw unsupported(field, "is not a token id (a whole number below 2^24)");
}

function readModelFile(file: unknown): BpeModelFile {
  const root = object(file, "the file");
  const model = object(root["model"], "model");
  checkModel(model);
  const vocabulary = new Map<string, number>();
  for (const [token, id] of Object.entries(object(model["vocab"], "model.vocab"))) {
    vocabulary.set(token, tokenId(id, `model.vocab[${JSON.stringify(token)}]`));
  }
  const normaliseNfc = readNormaliser(root["normalizer"]);
  return {
    splitRules: readSplitRules(root["pre_tokenizer"]),
    normaliseNfc,
    ignoreMerges: model["ignore_merges"] === true,
    vocabulary,
    merges: array(model["merges"], "model.merges").map(readMerge),
    addedTokens: array(root["added_tokens"] ?? [], "added_tokens").map((token, index) =>
      readAddedToken(token, `added_tokens[${String(index)}]`, normaliseNfc),
    ),
    prefixIds: readPrefix(root["post_processor"]),
  };
}

function checkModel(model: JsonObject): void {
  if (model["type"] !== "BPE") {
    throw unsupported("model.type", `${JSON.stringify(model["type"])} is not supported; BPE is`);
  }
  const plain: readonly (readonly [string, readonly unknown[]])[] = [
    ["dropout", [null, undefined, 0]],
    ["unk_token", [null, undefined]],
    ["continuing_subword_prefix", [null, undefined, ""]],
    ["end_of_word_suffix", [null, undefined, ""]],
    ["byte_fallback", [false, undefined, null]],
  ];
  for (const [key, allowed] of plain) {
    if (!allowed.includes(model[key])) {
      throw unsupported(
        `model.${key}`,
        `${JSON.stringify(model[key])} is not supported; byte-level BPE without it is`,
      );
    }
  }
}

function readMerge(merge: unknown, rank: number): readonly [string, string] {
  const parts: unknown = typeof merge === "string" ? merge.split(" ") : merge;
  if (Array.isArray(parts) && parts.length === 2) {
    const [left, right] = parts as readonly unknown[];
    if (typeof left === "string" && typeof right === "string") return [left, right];
  }
  throw unsupported(`model.merges[${String(rank)}]`, "is not a pair of tokens");
}

function readNormaliser(value: unknown): boolean {
  if (value === null || value === undefined) return false;
  const normaliser = object(value, "normalizer");
  if (normaliser["type"] === "NFC") return true;
  if (normaliser["type"] === "Sequence") {
    return array(normaliser["normalizers"], "normalizer.normalizers")
      .map(readNormaliser)
      .some(Boolean);
  }
  throw unsupported(
    "normalizer",
    `${JSON.stringify(normaliser["type"])} is not supported; NFC and none are`,
  );
}

function readSplitRules(value: unknown): SplitRules {
  const sequence = object(value, "pre_tokenizer");
  const steps =
    sequence["type"] === "Sequence"
      ? array(sequence["pretokenizers"], "pre_tokenizer.pretokenizers")
      : [];
  const [split, byteLevel] = steps;
  if (
    steps.length !== 2 ||
    !isObject(split) ||
    split["type"] !== "Split" ||
    split["behavior"] !== "Isolated" ||
    split["invert"] !== false ||
    !isObject(split["pattern"]) ||
    typeof split["pattern"]["Regex"] !== "string" ||
    !isObject(byteLevel) ||
    byteLevel["type"] !== "ByteLevel" ||
    byteLevel["add_prefix_space"] !== false ||
    byteLevel["use_regex"] !== false
  ) {
    throw unsupported(
      "pre_tokenizer",
      "is not supported; a Sequence of one isolated Split by a regular expression and one ByteLevel (no prefix space, no regex) is",
    );
  }
  return splitRulesOf(split["pattern"]["Regex"]);
}

function readAddedToken(value: unknown, field: string, normaliseNfc: boolean): AddedToken {
  const token = object(value, field);
  const content = token["content"];
  if (typeof content !== "string" || content === "") throw unsupported(field, "has no content");
  for (const key of ["single_word", "lstrip", "rstrip"]) {
    if (token[key] === true) throw unsupported(`${field}.${key}`, "true is not supported");
  }
  // Such a token is looked for after NFC; only text that NFC leaves alone is the same before it.
  if (token["normalized"] === true && normaliseNfc && /[^\0-\x7f]/.test(content)) {
    throw unsupported(`${field}.normalized`, "true is not supported for a token outside ASCII");
  }
  return { id: tokenId(token["id"], `${field}.id`), content, special: token["special"] === true };
}

/** Ids before the text in the `single` template of the post-processor, if it has one. */
function readPrefix(value: unknown): readonly number[] {
  if (!isObject(value)) return [];
  if (value["type"] === "Sequence") {
    return array(value["processors"], "post_processor.processors").flatMap(readPrefix);
  }
  if (value["type"] !== "TemplateProcessing") return [];
  const tokens = object(value["special_tokens"], "post_processor.special_tokens");
  const ids: number[] = [];
  for (const piece of array(value["single"], "post_processor.single")) {
    if (!isObject(piece) || !isObject(piece["SpecialToken"])) break;
    const name = String(piece["SpecialToken"]["id"]);
    const token = object(tokens[name], `post_processor.special_tokens[${JSON.stringify(name)}]`);
    for (const id of array(token["ids"], `post_processor.special_tokens[${name}].ids`)) {
      ids.push(tokenId(id, `post_processor.special_tokens[${name}].ids`));
    }
  }
  return ids;
}
