import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { qwen3Folder, qwen3Json } from "../../../test/support/tokenizer-oracle.ts";
import { buildTokenizer } from "../core/tokenizer/build-tokenizer.ts";
import { loadTokenizer, readModelFiles, specialTokenOf } from "./tokenizer-loader.ts";

describe("loadTokenizer", () => {
  test("gives a tokenizer with the same ids as one built in place", async () => {
    const json = qwen3Json();
    const loaded = await loadTokenizer(json);
    const built = buildTokenizer(json);
    const text = "Loaded elsewhere, café ❤️ 12<|im_end|>\n\n".repeat(20);
    expect(loaded.encode(text)).toEqual(built.encode(text));
    expect(loaded.decode(loaded.encode(text))).toEqual(new TextEncoder().encode(text));
    expect(loaded.vocabularySize).toBe(built.vocabularySize);
    // The caller's bytes are copied to the thread, not taken.
    expect(json.length).toBeGreaterThan(0);
  });

  test("takes little of the calling thread's time", async () => {
    const json = qwen3Json();
    const cpuMs = (): number => {
      const { user, system } = process.threadCpuUsage();
      return (user + system) / 1_000;
    };
    await loadTokenizer(json);
    const before = cpuMs();
    await loadTokenizer(json);
    const loadMs = cpuMs() - before;
    const start = cpuMs();
    buildTokenizer(json);
    const buildMs = cpuMs() - start;
    // About 10 ms in a dozen turns against 700 ms in one.
    expect(loadMs).toBeLessThan(buildMs / 5);
  });

  test("passes on what is wrong with the file", async () => {
    await expect(
      loadTokenizer(new TextEncoder().encode('{"model":{"type":"WordPiece"}}')),
    ).rejects.toMatchObject({
      name: "MeshError",
      code: "invalid_request",
      field: "model.type",
      message: expect.stringContaining("WordPiece") as string,
    });
  });

  test("stops when the caller no longer wants it", async () => {
    const abort = new AbortController();
    const loading = loadTokenizer(qwen3Json(), { signal: abort.signal });
    abort.abort(new Error("shutdown"));
    await expect(loading).rejects.toMatchObject({ code: "cancelled" });
    await expect(loadTokenizer(qwen3Json(), { signal: abort.signal })).rejects.toMatchObject({
      code: "cancelled",
    });
  });
});

describe("readModelFiles", () => {
  let dir: string;
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "kvmesh-model-"));
  });
  afterEach(async () => {
    await rm(dir, { recursive: true });
  });

  test("reads the Qwen3 folder", async () => {
    const files = await readModelFiles(qwen3Folder);
    expect(files.chatTemplate).toContain("<|im_start|>");
    expect(files.tokenizerSha256).toMatch(/^[0-9a-f]{64}$/);
    expect(files.chatTemplateSha256).toMatch(/^[0-9a-f]{64}$/);
    expect(specialTokenOf(files.config, "eos_token")).toBe("<|im_end|>");
    expect(specialTokenOf(files.config, "bos_token")).toBeUndefined();
  });

  test("prefers chat_template.jinja and knows named templates and token objects", async () => {
    await writeFile(join(dir, "tokenizer.json"), "{}");
    const config = {
      chat_template: [
        { name: "tool_use", template: "T" },
        { name: "default", template: "D" },
      ],
      bos_token: { content: "<s>", lstrip: false },
    };
    await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify(config));
    const named = await readModelFiles(dir);
    expect(named.chatTemplate).toBe("D");
    expect(specialTokenOf(named.config, "bos_token")).toBe("<s>");
    await writeFile(join(dir, "chat_template.jinja"), "J\n");
    const file = await readModelFiles(dir);
    expect(file.chatTemplate).toBe("J\n");
    expect(file.chatTemplateSha256).not.toBe(named.chatTemplateSha256);
    expect(file.tokenizerSha256).toBe(named.tokenizerSha256);
  });

  test("does without a configuration and a template", async () => {
    await writeFile(join(dir, "tokenizer.json"), "{}");
    expect(await readModelFiles(dir)).toMatchObject({
      chatTemplate: undefined,
      chatTemplateSha256: undefined,
      config: {},
    });
  });

  test("says what is missing or malformed", async () => {
    await expect(readModelFiles(dir)).rejects.toMatchObject({ code: "not_found" });
    await writeFile(join(dir, "tokenizer.json"), "{}");
    await writeFile(join(dir, "tokenizer_config.json"), "[]");
    await expect(readModelFiles(dir)).rejects.toMatchObject({ code: "invalid_request" });
    await writeFile(join(dir, "tokenizer_config.json"), "{");
    await expect(readModelFiles(dir)).rejects.toMatchObject({ code: "invalid_request" });
  });
});
