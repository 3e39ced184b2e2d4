import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { qwen3Json, TokenizerOracle } from "../../../test/support/tokenizer-oracle.ts";
import { buildTokenizer } from "../core/tokenizer/build-tokenizer.ts";
import { NativeTokenizer } from "./tokenizer-native.ts";

/** A family without a fused tokenizer: words cut by white space, small vocabulary, a token before a prompt. */
function otherFamily(): Uint8Array {
  const file = {
    version: "1.0",
    truncation: { direction: "Right", max_length: 2, strategy: "LongestFirst", stride: 0 },
    padding: null,
    added_tokens: [
      { id: 0, content: "<s>", special: true, single_word: false, lstrip: false, rstrip: false, normalized: false },
      { id: 1, content: "<unk>", special: true, single_word: false, lstrip: false, rstrip: false, normalized: false },
    ],
    normalizer: { type: "Lowercase" },
    pre_tokenizer: { type: "Whitespace" },
    post_processor: {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
      special_tokens: { "<s>": { id: "<s>", ids: [0], tokens: ["<s>"] } },
    },
    decoder: null,
    model: {
      type: "WordLevel",
      vocab: { "<s>": 0, "<unk>": 1, hello: 2, world: 3, "<": 4, s: 5, ">": 6, a: 7 },
      unk_token: "<unk>",
    },
  }; // prettier-ignore
  return new TextEncoder().encode(JSON.stringify(file));
}

describe("a family without a fused tokenizer", () => {
  let tokenizer: NativeTokenizer;
  beforeAll(async () => {
    tokenizer = await NativeTokenizer.open(otherFamily());
  });
  afterAll(async () => {
    await tokenizer.close();
  });

  test("is encoded as the reference encodes it, whole, with what stands before a prompt known", async () => {
    expect(() => buildTokenizer(otherFamily())).toThrow(/WordLevel/);
    expect([...(await tokenizer.encodeLater("Hello world  WORLD nobody"))]).toEqual([2, 3, 3, 1]);
    expect(tokenizer.prefixIds).toEqual([0]);
  });

  test("reads control tokens as text on request", async () => {
    expect([...(await tokenizer.encodeLater("<s>hello"))]).toEqual([0, 2]);
    expect([...(await tokenizer.encodeLater("< s > hello", { special: false }))]).toEqual([
      4, 5, 6, 2,
    ]);
    expect([...(await tokenizer.encodeLater("<s>", { special: false }))]).not.toContain(0);
  });

  test("reads bytes that lie in another buffer, and leaves them alone", async () => {
    const buffer = new TextEncoder().encode("xxhello world");
    expect([...(await tokenizer.encodeLater(buffer.subarray(2)))]).toEqual([2, 3]);
    expect(new TextDecoder().decode(buffer)).toBe("xxhello world");
  });
});

describe("a large vocabulary", () => {
  let tokenizer: NativeTokenizer;
  beforeAll(async () => {
    tokenizer = await NativeTokenizer.open(qwen3Json(), { limits: { deadlineMs: 15_000 } });
  });
  afterAll(async () => {
    await tokenizer.close();
  });

  test("many texts at once come back each with its own ids", async () => {
    const oracle = new TokenizerOracle(qwen3Json());
    const texts = Array.from({ length: 30 }, (_, i) =>
      `text ${String(i)} <|im_end|> café `.repeat(i + 1),
    );
    const ids = await Promise.all(texts.map((text) => tokenizer.encodeLater(text)));
    for (const [i, text] of texts.entries()) {
      expect([...(ids[i] ?? [])]).toEqual(await oracle.encode(text));
    }
    expect(tokenizer).toMatchObject({ queued: 0, queuedBytes: 0, counts: { encoded: 30 } });
  });

  test("keeps the ids of other added tokens when control tokens are read as text", async () => {
    const text = "<|im_start|>a<think>b</think><|im_end|>";
    const fused = buildTokenizer(qwen3Json());
    expect(await tokenizer.encodeLater(text, { special: false })).toEqual(
      fused.encode(text, { special: false }),
    );
    expect(await tokenizer.encodeLater(text)).toEqual(fused.encode(text));
  });
});

describe("limits", () => {
  let tokenizer: NativeTokenizer | undefined;
  afterEach(async () => {
    await tokenizer?.close();
    tokenizer = undefined;
  });

  test("refuses what does not fit into the queue, by count and by bytes, and a text too long", async () => {
    const limits = { queueMax: 2, queueBytesMax: 1_000, textBytesMax: 900 };
    tokenizer = await NativeTokenizer.open(otherFamily(), { limits });
    const native = tokenizer;
    await expect(native.encodeLater("x".repeat(901))).rejects.toMatchObject({
      code: "request_too_large",
    });
    const first = native.encodeLater("hello ".repeat(100));
    await expect(native.encodeLater("x".repeat(500))).rejects.toMatchObject({ code: "overloaded" });
    const more = [native.encodeLater("hello"), native.encodeLater("world")];
    await expect(native.encodeLater("a")).rejects.toMatchObject({ code: "overloaded" });
    expect((await first).length).toBe(100);
    expect((await Promise.all(more)).map((ids) => [...ids])).toEqual([[2], [3]]);
    expect(native).toMatchObject({ queued: 0, queuedBytes: 0, counts: { overloaded: 2 } });
  });

  test("gives up at the deadline and when the caller does, and goes on with the next", async () => {
    tokenizer = await NativeTokenizer.open(otherFamily());
    const native = tokenizer;
    const long = native.encodeLater("Some words to keep it busy. ".repeat(30_000), {
      deadlineMs: 1,
    });
    const late = native.encodeLater("never looked at", { deadlineMs: 1 });
    const abort = new AbortController();
    const unwanted = native.encodeLater("not wanted", { signal: abort.signal });
    const settled = Promise.all([
      expect(long).rejects.toMatchObject({ code: "deadline_exceeded" }),
      expect(late).rejects.toMatchObject({ code: "deadline_exceeded" }),
      expect(unwanted).rejects.toMatchObject({ code: "cancelled" }),
    ]);
    abort.abort();
    await settled;
    await expect(native.encodeLater("x", { signal: abort.signal })).rejects.toMatchObject({
      code: "cancelled",
    });
    expect((await retried(() => native.encodeLater("after"))).length).toBe(1);
    expect(native.counts.encoded).toBe(1);
    expect(native).toMatchObject({ queued: 0, queuedBytes: 0 });
  });

  test("starts a thread anew that is stuck, and loses only the text it had", async () => {
    tokenizer = await NativeTokenizer.open(otherFamily(), { limits: { stuckMs: 20 } });
    const native = tokenizer;
    const stuck = native.encodeLater("Some words to keep it busy. ".repeat(140_000));
    const next = native.encodeLater("hello");
    await Promise.all([
      expect(stuck).rejects.toMatchObject({ code: "worker_lost" }),
      next.catch(() => undefined),
    ]);
    expect(native.counts.threadsLost).toBeGreaterThan(0);
    expect((await retried(() => native.encodeLater("hello"))).length).toBe(1);
  });

  test("cancels what waits when it is closed", async () => {
    tokenizer = await NativeTokenizer.open(otherFamily());
    const waiting = [tokenizer.encodeLater("hello"), tokenizer.encodeLater("world")];
    const refused = Promise.all(
      waiting.map((one) => expect(one).rejects.toMatchObject({ code: "cancelled" })),
    );
    await tokenizer.close();
    await refused;
    await expect(tokenizer.encodeLater("x")).rejects.toMatchObject({ code: "cancelled" });
  });
});

/** A busy machine may need more than one deadline until the thread is free or started again. */
async function retried(encode: () => Promise<Uint32Array>): Promise<Uint32Array> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await encode();
    } catch (error) {
      if (attempt === 8) throw error;
    }
  }
}

describe("a file that the package cannot read", () => {
  test("is refused with the reason", async () => {
    const file = new TextEncoder().encode('{"model":{}}');
    await expect(NativeTokenizer.open(file)).rejects.toMatchObject({
      code: "invalid_request",
      message: expect.stringContaining("tokenizer.json") as string,
    });
  });

  test("is not opened for one who no longer wants it", async () => {
    const signal = AbortSignal.abort();
    await expect(NativeTokenizer.open(otherFamily(), { signal })).rejects.toMatchObject({
      code: "cancelled",
    });
  });
});
