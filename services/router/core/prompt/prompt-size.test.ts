import { describe, expect, test } from "vitest";
import { BodyReader } from "../openai/body-reader.ts";
import { readOpenAiRequest, type OpenAiRequest } from "../openai/openai-request.ts";
import { refuseHopelessLength } from "./prompt-size.ts";

const tokenizer = { tokenSizeMax: 4, encode: () => new Uint32Array(0) };
const contextMax = 100;
const key = new Int32Array([1, 2, 3, 4, 5, 6, 7, 8]);

/** Why a body is refused, read in the quick way and by the judge; both must agree. */
function refusal(path: string, body: unknown, of: typeof tokenizer | undefined = tokenizer) {
  const bytes = new TextEncoder().encode(JSON.stringify(body));
  const scanned = new BodyReader({ key, isUtf8: () => true }).read(path, bytes);
  const judged = readOpenAiRequest(path, bytes);
  const why = ({ prompt }: OpenAiRequest): string => {
    try {
      refuseHopelessLength(prompt, { bodyBytes: bytes.length, contextMax }, of);
      return "";
    } catch (error) {
      return String(error);
    }
  };
  expect(why(scanned)).toBe(why(judged));
  return why(scanned);
}

const chat = (...messages: readonly { role: string; content: unknown }[]) =>
  refusal("/v1/chat/completions", { model: "m", messages });

describe("a prompt too long whatever its tokens are", () => {
  test("is refused from the first length at which no tokens could make it fit", () => {
    const text = (bytes: number) =>
      refusal("/v1/completions", { model: "m", prompt: "a".repeat(bytes) });
    expect(text(399)).toBe("");
    expect(text(400)).toContain("at least 100 tokens");
    expect(chat({ role: "user", content: "a".repeat(399) })).toBe("");
    expect(chat({ role: "user", content: "a".repeat(400) })).toContain("takes fewer than 100");
  });

  test("is measured by what its escapes stand for", () => {
    expect(chat({ role: "user", content: "\n".repeat(399) })).toBe("");
    expect(chat({ role: "user", content: "\n".repeat(400) })).toContain("at least 100");
  });

  test("is measured by what composition may leave of it", () => {
    expect(chat({ role: "user", content: "e\u0301".repeat(400) })).toBe("");
    expect(chat({ role: "user", content: "e\u0301".repeat(800) })).toContain("at least 100");
  });

  test("counts the user's texts of all messages, in parts too, and nobody else's", () => {
    const part = { type: "text", text: "a".repeat(200) };
    const user = { role: "user", content: [part] };
    expect(chat(user, user)).toContain("at least 100");
    expect(chat(user, { role: "assistant", content: "a".repeat(5_000) })).toBe("");
  });

  test("is not guessed of a tokenizer that does not say how long its tokens are", () => {
    const body = { model: "m", prompt: "a".repeat(4_000) };
    const silent = { ...tokenizer, tokenSizeMax: 0 };
    expect(refusal("/v1/completions", body, silent)).toBe("");
  });
});
