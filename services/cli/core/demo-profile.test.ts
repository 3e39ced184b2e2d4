import { expect, test } from "vitest";
import { policyNames } from "../../router/core/placement/policy.ts";
import { demoPolicies, demoProfile, placementPolicies } from "./demo-profile.ts";

const defaults = { rateFactor: 15, workers: 4, kvTokensPerWorker: 112_500 };

test("the fleet of a workload has its size and capacity, and blocks that divide", () => {
  const agentic = demoProfile({
    workload: "agentic",
    defaults,
    workers: undefined,
    modelDir: "/m",
  });
  expect(agentic.engines).toHaveLength(4);
  expect(agentic.engines[0]).toMatchObject({ kvTokens: 112_500, blockSizeTokens: 16 });
  expect(agentic.blockSizeTokens).toBe(16);
  const two = demoProfile({ workload: "conversation", defaults, workers: 2, modelDir: "/m" });
  expect(two.engines).toHaveLength(2);
  expect(two.blockSizeTokens % Number(two.engines[0]?.["blockSizeTokens"])).toBe(0);
});

test("the policies that may be named are those of the router", () => {
  expect([...placementPolicies].sort()).toEqual([...policyNames].sort());
  for (const policy of demoPolicies) expect(placementPolicies).toContain(policy);
});
