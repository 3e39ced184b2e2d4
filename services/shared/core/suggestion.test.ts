import { describe, expect, test } from "vitest";
import { closestName, unknownName } from "./suggestion.ts";

const policies = ["round-robin", "least-requests", "kv-blind", "kv"];

describe("closestName", () => {
  test("finds the name meant by a typing error", () => {
    expect(closestName("roundrobin", policies)).toBe("round-robin");
    expect(closestName("least-reqeusts", policies)).toBe("least-requests");
    expect(closestName("KV", policies)).toBe("kv");
  });

  test("suggests nothing when no candidate is near", () => {
    expect(closestName("random", policies)).toBeUndefined();
    expect(closestName("x", [])).toBeUndefined();
  });
});

test("unknownName says what is known", () => {
  expect(unknownName("policy", "kvv", policies)).toBe(
    "unknown policy 'kvv'. Did you mean 'kv'? Known: round-robin, least-requests, kv-blind, kv.",
  );
  expect(unknownName("policy", "random", ["kv"])).toBe("unknown policy 'random'. Known: kv.");
});
