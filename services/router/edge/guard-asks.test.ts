import { describe, expect, test } from "vitest";
import type { OpenAiRequest } from "../core/openai/openai-request.ts";
import { guardDefaults } from "../core/relays/stream-guards.ts";
import { GuardAsks } from "./guard-asks.ts";

const body = Buffer.from('{"model":"m","prompt":"p","stream":true}');
const tools = Buffer.from('{"model":"m","tools":[{}],"stream":true}');
const prompt = { kind: "text", text: "p" } as const;
const request = (over: Partial<OpenAiRequest> = {}): OpenAiRequest => ({
  kind: "completions",
  model: "m",
  tokensMax: undefined,
  stream: true,
  prompt,
  ...over,
});
const none = { header: undefined, body };

describe("which streams are guarded", () => {
  test("says the pool's setting, else the general one", () => {
    const pools = new Map([
      ["loud", "relay"],
      ["quiet", "off"],
    ] as const);
    const asks = new GuardAsks({ ...guardDefaults, pools });
    expect(asks.of(request(), "default", none)).toEqual({ mode: "pairs", off: "" });
    expect(asks.of(request(), "loud", none)).toEqual({ mode: "relay", off: "" });
    expect(asks.of(request(), "quiet", none)).toBeUndefined();
    expect(["default", "loud", "quiet"].map((pool) => asks.isGuarded(request(), pool))).toEqual([
      true,
      true,
      false,
    ]);
  });

  test("says the header before either, and nothing where it names no mode", () => {
    const asks = new GuardAsks(guardDefaults);
    const by = (header: string) => asks.of(request(), "default", { header, body })?.mode;
    expect(["relay", "off", "pairs", "on", ""].map(by)).toEqual([
      "relay",
      undefined,
      "pairs",
      "pairs",
      "pairs",
    ]);
  });

  test("looks into the body only where all are to pass a relay", () => {
    const asks = new GuardAsks(guardDefaults);
    const by = (header: string, bytes: Buffer | undefined) =>
      asks.of(request(), "default", { header, body: bytes })?.off;
    expect([by("pairs", tools), by("relay", tools), by("relay", undefined)]).toEqual([
      "",
      "tools",
      "not_read",
    ]);
  });

  test("is none that does not come token by token, or on a path that relays do not carry", () => {
    const asks = new GuardAsks({ ...guardDefaults, mode: "relay" });
    for (const over of [
      { stream: false },
      { kind: "embeddings" },
      { kind: "responses" },
    ] as const) {
      expect(asks.of(request(over), "default", none)).toBeUndefined();
      expect(asks.isGuarded(request(over), "default")).toBe(false);
    }
    const unsaid: OpenAiRequest = {
      kind: "chat",
      model: "m",
      tokensMax: undefined,
      prompt,
    };
    expect(asks.of(unsaid, "default", none)).toBeUndefined();
  });
});
