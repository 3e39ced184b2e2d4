import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { readModelFiles } from "../../services/shared/edge/tokenizer-loader.ts";
import {
  playPeer,
  sendBody,
  sendHeaders,
  startExtProcRouter,
  type ExtProcRouter,
  type PeerOutcome,
} from "../support/router-ext-proc.ts";
import { qwen3Folder } from "../support/tokenizer-oracle.ts";

// Each test has its own: requests that nobody ends fill the workers.
let router: ExtProcRouter;
afterEach(() => {
  router.stop();
});

/** A family that the fused tokenizer does not have: whole words. */
function wordLevelFile(): Uint8Array {
  const model = {
    type: "WordLevel",
    vocab: { "<unk>": 0, hello: 1, world: 2 },
    unk_token: "<unk>",
  };
  const file = { version: "1.0", added_tokens: [], pre_tokenizer: { type: "Whitespace" }, model };
  return new TextEncoder().encode(JSON.stringify(file));
}

function send(path: string, id: string, body: object): Promise<PeerOutcome> {
  const headers = { ":path": path, "x-request-id": id };
  return playPeer(router.client, [
    sendHeaders("buffered", { headers }),
    { do: "await", answers: 1 },
    sendBody(body),
  ]);
}

const complete = (id: string, prompt: string): Promise<PeerOutcome> =>
  send("/v1/completions", id, { model: "m", prompt });
const chat = (id: string, ...contents: string[]): Promise<PeerOutcome> =>
  send("/v1/chat/completions", id, {
    model: "m",
    messages: contents.map((content, i) => ({ role: i % 2 === 0 ? "user" : "assistant", content })),
  });

describe("a family without a fused tokenizer", () => {
  test("is tokenised by the native package", async () => {
    const model = { tokenizerJson: wordLevelFile(), chatTemplate: "{{ messages[0].content }}" };
    router = await startExtProcRouter({ model });
    await complete("text", "hello world again");
    await chat("chat", "hello world");
    const decisions = ["text", "chat"].map((id) => router.core.decisions.byRequest(id));
    expect(decisions.map((d) => [d?.loadOnlyReason, d?.promptTokens])).toEqual([
      ["", 3],
      ["", 2],
    ]);
    expect(await router.metric("tokenizerTexts", { outcome: "encoded" })).toBe(2);
  }, 30_000);
});

describe("prompts that take long to tokenise", () => {
  beforeEach(async () => {
    const { tokenizerJson, chatTemplate = "" } = await readModelFiles(qwen3Folder);
    router = await startExtProcRouter({ model: { tokenizerJson, chatTemplate } });
  }, 30_000);

  test("let requests that come later be answered first", async () => {
    const order: string[] = [];
    const note = async (name: string, outcome: Promise<PeerOutcome>): Promise<PeerOutcome> => {
      const result = await outcome;
      order.push(name);
      return result;
    };
    const large = note("large", complete("large", "a".repeat(2 << 20)));
    // It has been read and waits for its tokens.
    while ((await router.metric("tokenizerWaiting")) === 0) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    for (let i = 0; i < 20; i++) await note("small", complete(`small-${i}`, `a short text ${i}`));
    expect(order).toEqual(Array.from({ length: 20 }, () => "small"));
    const { answers } = await large;
    expect(answers.at(-1)).toContain("picked=127.0.0.1:810");
  }, 30_000);

  test("are read like others, and at once the second time", async () => {
    const texts = ["many different words 1234 ".repeat(8_000), "z".repeat(40_000), "and now?"];
    const before = await router.metric("tokenizerTexts", { outcome: "encoded" });
    await chat("first", ...texts);
    expect(await router.metric("tokenizerTexts", { outcome: "encoded" })).toBe(before + 2);
    await chat("second", ...texts);
    expect(await router.metric("tokenizerTexts", { outcome: "encoded" })).toBe(before + 2);
    const [first, second] = ["first", "second"].map((id) => router.core.decisions.byRequest(id));
    expect(first?.loadOnlyReason).toBe("");
    expect(second?.promptTokens).toBe(first?.promptTokens);
    expect(first?.promptTokens).toBeGreaterThan(40_000);
  }, 30_000);

  test("are forgotten when their client leaves", async () => {
    const cancelled = await router.metric("tokenizerTexts", { outcome: "cancelled" });
    await playPeer(router.client, [
      sendHeaders("buffered", { headers: { "x-request-id": "left" } }),
      { do: "await", answers: 1 },
      sendBody({ model: "m", prompt: "b".repeat(1 << 20) }),
      { do: "await", answers: 2 },
      { do: "cancel" },
    ]);
    while ((await router.metric("tokenizerWaiting")) > 0) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    expect(await router.metric("tokenizerTexts", { outcome: "cancelled" })).toBe(cancelled + 1);
    expect(router.core.decisions.byRequest("left")).toBeUndefined();
  }, 30_000);
});
