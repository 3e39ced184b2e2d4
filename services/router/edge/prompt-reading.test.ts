import { describe, expect, test } from "vitest";
import { hashRoot } from "../../shared/core/block-hash.ts";
import { MeshError, type MeshErrorCode } from "../../shared/core/errors.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import type { OpenAiRequest } from "../core/openai/openai-request.ts";
import { DeferringTokenizer } from "../core/prompt/deferring-tokenizer.ts";
import type { ModelRuntime, TextEncoderLater } from "../core/prompt/model-runtime.ts";
import type { TokenisedPrompt } from "../core/prompt/read-prompt.ts";
import { routerMetrics } from "../metrics.ts";
import { PromptReading, type AwaitedPrompt } from "./prompt-reading.ts";

const bytewise = {
  encode: (text: string | Uint8Array) =>
    Uint32Array.from(typeof text === "string" ? Buffer.from(text) : text),
};
const root = hashRoot(new Uint8Array(32), { model: "m" });
const long = "x".repeat(100);

function request(text: string): OpenAiRequest {
  return {
    kind: "completions",
    model: "m",
    tokensMax: undefined,
    prompt: { kind: "text", text },
  };
}

/** A reader whose texts of more than 10 bytes are encoded by `encodeLater`. */
function setUp(encodeLater: TextEncoderLater["encodeLater"], keptBytesMax = 1_000) {
  const { metrics } = createMetrics(routerMetrics);
  const tokenizer = new DeferringTokenizer(bytewise, 10);
  const runtime: ModelRuntime = {
    tokenizer,
    later: { tokenizer, encodeLater },
    unsupported: false,
    template: undefined,
    addsSpecialTokens: false,
    root,
  };
  const reading = new PromptReading({
    clock: realClock,
    metrics,
    blockSizeTokens: 16,
    keptBytesMax,
  });
  const read = (text: string): TokenisedPrompt | AwaitedPrompt =>
    reading.read({ openAi: request(text), bodyBytes: text.length, runtime, contextMax: 0 }, () => ({
      bytes: text.length,
      reread: () => request(text),
    }));
  const outcomes = async (): Promise<Record<string, number>> => {
    const { values } = await metrics.tokenizerTexts.get();
    return Object.fromEntries(values.map((v) => [String(v.labels["outcome"]), v.value]));
  };
  const waiting = async (): Promise<number[]> =>
    Promise.all(
      [metrics.tokenizerWaiting, metrics.tokenizerWaitingBytes].map(
        async (m) => (await m.get()).values[0]?.value ?? 0,
      ),
    );
  return { reading, read, outcomes, waiting };
}

function awaited(read: TokenisedPrompt | AwaitedPrompt): AwaitedPrompt {
  if (!("read" in read)) throw new Error("the prompt was read at once");
  return read;
}

describe("PromptReading", () => {
  test("reads a short prompt at once and a long one to the same hashes later", async () => {
    const { reading, read, outcomes, waiting } = setUp((text) =>
      Promise.resolve(bytewise.encode(text)),
    );
    expect(read("short")).toMatchObject({ tokens: 5, loadOnly: undefined });
    const later = awaited(read(long));
    expect(reading.keptBytes).toBe(100);
    expect(await waiting()).toEqual([1, 100]);
    const prompt = await later.read;
    expect([prompt.tokens, prompt.hashes.length, prompt.loadOnly]).toEqual([100, 12, undefined]);
    expect(reading.keptBytes).toBe(0);
    expect(await waiting()).toEqual([0, 0]);
    expect(await outcomes()).toEqual({ encoded: 1 });
  });

  test.each<[MeshErrorCode, string]>([
    ["overloaded", "tokenizer_busy"],
    ["deadline_exceeded", "tokenizer_busy"],
    ["request_too_large", "tokenizer_limit"],
    ["invalid_request", "tokenizer_refused"],
    ["worker_lost", "tokenizer_lost"],
  ])("places by load when the thread says %s", async (code, reason) => {
    const { reading, read, outcomes, waiting } = setUp(() =>
      Promise.reject(new MeshError(code, "no")),
    );
    const prompt = await awaited(read(long)).read;
    expect(prompt).toMatchObject({ loadOnly: reason, tokens: 25 });
    expect(prompt.hashes).toHaveLength(0);
    expect(await outcomes()).toEqual({ [reason]: 1 });
    expect([reading.keptBytes, ...(await waiting())]).toEqual([0, 0, 0]);
  });

  test("drops the job when the client leaves", async () => {
    const { reading, read, outcomes } = setUp((_, { signal }) => {
      const { promise, reject } = Promise.withResolvers<Uint32Array>();
      signal.addEventListener("abort", () => {
        reject(new MeshError("cancelled", "left"));
      });
      return promise;
    });
    const later = awaited(read(long));
    later.cancel();
    await expect(later.read).rejects.toMatchObject({ code: "cancelled" });
    expect(reading.keptBytes).toBe(0);
    expect(await outcomes()).toEqual({ cancelled: 1 });
  });

  test("keeps no more bodies than it may", async () => {
    const { read } = setUp(() => Promise.resolve(new Uint32Array(3)), 150);
    const first = awaited(read(long));
    expect(read(long)).toMatchObject({ loadOnly: "tokenizer_busy", tokens: 25 });
    await first.read;
    expect("read" in read(long)).toBe(true);
  });

  test("does not let two requests that wait see each other's texts", async () => {
    const { read } = setUp((text) => Promise.resolve(bytewise.encode(text)));
    const other = "y".repeat(64);
    const both = [awaited(read(long)), awaited(read(other))];
    const prompts = await Promise.all(both.map((one) => one.read));
    expect(prompts.map((p) => p.tokens)).toEqual([100, 64]);
  });
});
