import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { qwen3Json } from "../../../test/support/tokenizer-oracle.ts";
import { buildTokenizer } from "../core/tokenizer/build-tokenizer.ts";
import { fusedThread } from "./tokenizer-fused.ts";
import type { TokenizerThread } from "./tokenizer-thread.ts";

let thread: TokenizerThread;
beforeAll(async () => {
  thread = await fusedThread(qwen3Json(), { cacheFolder: "", limits: { deadlineMs: 30_000 } });
});
afterAll(async () => {
  await thread.close();
});

describe("fusedThread", () => {
  test("gives the ids that the same tokenizer gives at once", async () => {
    const inline = buildTokenizer(qwen3Json());
    const texts = ["a".repeat(70_000), " ".repeat(5_000), "<|im_end|>café ❤️\n".repeat(500)];
    for (const text of texts) {
      expect(await thread.encodeLater(text)).toEqual(inline.encode(text));
      expect(await thread.encodeLater(Buffer.from(text), { special: false })).toEqual(
        inline.encode(text, { special: false }),
      );
    }
  });

  test("goes on with a new thread after one that was stuck", async () => {
    const stuck = await fusedThread(qwen3Json(), {
      cacheFolder: "",
      limits: { deadlineMs: 30_000, stuckMs: 50 },
    });
    try {
      await expect(stuck.encodeLater("a".repeat(2 << 20))).rejects.toMatchObject({
        code: "worker_lost",
      });
      expect(stuck.counts.threadsLost).toBe(1);
      expect((await stuck.encodeLater("hello world")).length).toBe(2);
    } finally {
      await stuck.close();
    }
  });

  test("says that its file cannot be read", async () => {
    const broken = await fusedThread(new TextEncoder().encode("{}"), { cacheFolder: "" });
    await expect(broken.encodeLater("text")).rejects.toMatchObject({ code: "worker_lost" });
    await broken.close();
  });
});
