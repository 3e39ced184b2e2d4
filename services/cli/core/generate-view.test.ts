import { describe, expect, test } from "vitest";
import { failureJson, failureLines, finishedLines, type FailedRequest } from "./generate-view.ts";

const failed: FailedRequest = {
  statusName: "RESOURCE_EXHAUSTED",
  reason: "tenant_limited",
  message: "tenant acme has 4 requests open, its maximum",
  retryAfterMs: 1_240,
  mayRetry: true,
  quotas: [{ subject: "tenant:acme", description: "too much" }],
  resumeToken: "",
  requestId: "r1",
};

describe("a failed request", () => {
  test("says status, reason, limits, and when to try again", () => {
    expect(failureLines(failed)).toEqual([
      "kvmesh: RESOURCE_EXHAUSTED tenant_limited: tenant acme has 4 requests open, its maximum",
      "  over its limit: tenant:acme (too much)",
      "  trying again makes sense in 1.2 s",
      "  request r1",
    ]);
  });

  test("gives the token of a stream that can go on, and no hope where there is none", () => {
    const broken = { ...failed, quotas: [], retryAfterMs: undefined, mayRetry: false };
    const lines = failureLines({ ...broken, resumeToken: "abc" });
    expect(lines).toContain("  the stream goes on with the same words and --resume abc");
    expect(lines.join()).not.toContain("trying again");
    expect(failureLines({ ...broken, mayRetry: true })).toContain("  trying again may help");
  });

  test("has only what there is as JSON", () => {
    expect(failureJson({ ...failed, quotas: [], retryAfterMs: undefined })).toEqual({
      status: "RESOURCE_EXHAUSTED",
      reason: "tenant_limited",
      message: failed.message,
      mayRetry: true,
    });
  });
});

test("a finished request says what it took, and how often it broke", () => {
  const done = {
    requestId: "r1",
    decisionId: "router-0.1.2",
    finishReason: "stop",
    usage: { promptTokens: 20, cachedTokens: 16, completionTokens: 5 },
    guarded: false,
    unguardedReason: "not_asked",
    resumes: 2,
    ttftMs: 41.3,
    durationMs: 1_234,
  };
  expect(finishedLines(done)).toEqual([
    "20 tokens in (16 cached), 5 out, ended by stop; first after 41 ms, all in 1.23 s; not guarded (not_asked), went on 2 times after it broke",
    "request r1  decision router-0.1.2  (npx kvmesh explain router-0.1.2)",
  ]);
});
