import { describe, expect, test } from "vitest";
import { RestartPolicy } from "./restart-policy.ts";

const limits = { baseMs: 100, maxMs: 300, windowMs: 1_000, deathsMax: 4 };

describe("RestartPolicy", () => {
  test("doubles the delay with every death up to the cap, then gives up", () => {
    const policy = new RestartPolicy(limits);
    expect(policy.died(0)).toEqual({ kind: "restart", afterMs: 100, death: 1 });
    expect(policy.died(10)).toEqual({ kind: "restart", afterMs: 200, death: 2 });
    expect(policy.died(20)).toEqual({ kind: "restart", afterMs: 300, death: 3 });
    expect(policy.died(30)).toEqual({ kind: "give_up", deaths: 4 });
  });

  test("forgets deaths that are older than the window", () => {
    const policy = new RestartPolicy(limits);
    policy.died(0);
    policy.died(100);
    policy.died(200);
    expect(policy.died(1_150)).toEqual({ kind: "restart", afterMs: 200, death: 2 });
  });
});
