import { describe, expect, test } from "vitest";
import type { Workload } from "../../../shared/core/workload/workload.ts";
import { remarksBefore, requireRoot } from "./replay-command.ts";

const workload: Workload = {
  name: "test",
  blockTokens: 16,
  requests: [
    { atMs: 0, inputTokens: 100, outputTokens: 10, blockIds: [] },
    { atMs: 30_000, inputTokens: 9_000, outputTokens: 10, blockIds: [] },
    { atMs: 600_000, inputTokens: 9_000, outputTokens: 10, blockIds: [] },
  ],
  description: "",
  licence: "",
  source: "",
};

describe("requireRoot", () => {
  test.each([
    ["http://h:8080/v1/chat/completions", "--url http://h:8080 --api chat"],
    ["http://h:8080/v1/completions/", "--url http://h:8080 --api completions"],
  ])("says what to give in place of %s", (url, advice) => {
    expect(() => {
      requireRoot(url);
    }).toThrow(advice);
  });

  test.each(["http://h:8080", "http://h:8080/v1", "http://h:8080/pool/v1/"])("takes %s", (url) => {
    expect(() => {
      requireRoot(url);
    }).not.toThrow();
  });
});

describe("remarksBefore", () => {
  test("says how long a long run is, and how many requests do not fit the model", () => {
    const model = { id: "m", contextTokensMax: 8_192 };
    expect(remarksBefore(workload, { rateFactor: 1, durationMs: undefined, model })).toEqual([
      "3 requests over 10.0 minutes; --duration 60 ends after the first",
      "2 of 3 requests are longer than the 8192 tokens that m takes, and will be refused",
    ]);
  });

  test("counts only what is due, and is silent when all is well", () => {
    const model = { id: "m", contextTokensMax: 8_192 };
    expect(remarksBefore(workload, { rateFactor: 2, durationMs: 15_000, model })).toEqual([
      "1 of 2 requests are longer than the 8192 tokens that m takes, and will be refused",
    ]);
    const short = { rateFactor: 1, durationMs: 10_000, model: { id: "m" } };
    expect(remarksBefore(workload, short)).toEqual([]);
  });
});
