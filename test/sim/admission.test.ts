import { describe, expect, test } from "vitest";
import { admissionDefaults } from "../../services/router/core/admission/options.ts";
import type { Fleet } from "../../services/simulator/core/fleet/fleet.ts";
import {
  overloadFigures,
  runOverload,
  type OverloadOptions,
} from "../../services/simulator/core/fleet/overload-run.ts";

/** Simulated minutes at ten times the load; the nightly run takes ten. */
const minutes = Number(process.env["KVMESH_OVERLOAD_MINUTES"] ?? "2");

/** Two engines and long prompts: about 19 answers a second is all that they can give. */
const common: Omit<OverloadOptions, "tenants" | "forMs"> = {
  seed: 1,
  engines: 2,
  routers: 1,
  groups: 40,
  promptTokensMean: 8_000,
  outputTokensMean: 60,
};
const capacityPerSecond = 19;
const measuredFromMs = 20_000;

function anyone(perSecond: number) {
  return [{ name: "", priority: "", perSecond }];
}

function figures(fleet: Fleet, forMs: number) {
  return overloadFigures(fleet.records, { fromMs: measuredFromMs, toMs: forMs });
}

/** Prompt tokens that engines computed per second for requests that were answered within the measured time. */
function computedPerSecond(fleet: Fleet, forMs: number): number {
  let tokens = 0;
  for (const r of fleet.records) {
    if (r.outcome !== "answered" || r.endMs < measuredFromMs || r.endMs > forMs) continue;
    tokens += r.promptTokens - r.cachedTokens;
  }
  return (tokens * 1_000) / (forMs - measuredFromMs);
}

describe("a pool offered ten times what it can give", () => {
  test(
    `answers as much as ever, as soon as at 80 %, and refuses the rest at once (${minutes} min)`,
    { timeout: 600_000 },
    () => {
      const calmMs = 120_000;
      const calm = runOverload({
        ...common,
        admission: admissionDefaults,
        tenants: anyone(0.8 * capacityPerSecond),
        forMs: calmMs,
      });
      const atEighty = figures(calm, calmMs);
      expect(atEighty.refused).toBe(0);

      // Without admission queues grow without end, but engines are never idle: that is the most that they can give.
      const peak = runOverload({
        ...common,
        tenants: anyone(1.4 * capacityPerSecond),
        forMs: calmMs,
      });
      const peakComputed = computedPerSecond(peak, calmMs);

      const forMs = minutes * 60_000;
      let waitingMost = 0;
      let openMost = 0;
      const fleet = runOverload(
        {
          ...common,
          admission: admissionDefaults,
          tenants: anyone(10 * capacityPerSecond),
          forMs,
        },
        ({ routers: [router] }) => {
          for (const { admission } of router?.core.gates.values() ?? []) {
            waitingMost = Math.max(waitingMost, admission.waitingCount);
          }
          openMost = Math.max(openMost, router?.core.book.openCount ?? 0);
        },
      );
      const all = figures(fleet, forMs);
      // Every request is answered or refused; none passes without a decision, since none waits past its timer.
      expect(fleet.records.every((r) => r.endings === 1)).toBe(true);
      const waited = Math.max(...fleet.records.map((r) => r.waitedMs));
      expect(waited).toBeLessThanOrEqual(admissionDefaults.classes[0]?.waitMsMax ?? 0);
      expect(all.failed).toBe(0);

      expect(all.goodputPerSecond).toBeGreaterThanOrEqual(
        0.95 * figures(peak, calmMs).goodputPerSecond,
      );
      expect(computedPerSecond(fleet, forMs)).toBeGreaterThanOrEqual(0.95 * peakComputed);
      expect(all.ttftMsP99).toBeLessThanOrEqual(1.5 * atEighty.ttftMsP99);
      expect(all.refusalMsP99).toBeLessThanOrEqual(50);
      // A burst may wait for its longest time before the class counts as overloaded.
      expect(waitingMost).toBeLessThan(150);
      expect(openMost).toBeLessThan(200);
      const shed = fleet.records.filter((r) => r.outcome === "refused");
      expect(shed.every((r) => r.shedReason !== "")).toBe(true);
    },
  );

  test("below 60 % of what it can give nothing waits worth speaking of", () => {
    const forMs = 60_000;
    const fleet = runOverload({
      ...common,
      admission: admissionDefaults,
      tenants: anyone(0.6 * capacityPerSecond),
      forMs,
    });
    const calm = figures(fleet, forMs);
    expect(calm.refused).toBe(0);
    expect(calm.waitedRatio).toBeLessThan(0.05);
    expect(calm.waitMsP99).toBeLessThan(100);
  });
});

describe("several routers", () => {
  const terms = { requestsPerSecond: 0, tokensPerSecond: 0 };
  const admission = {
    ...admissionDefaults,
    tenants: new Map([
      ["small", { weight: 1, ...terms }],
      ["middle", { weight: 2, ...terms }],
      ["large", { weight: 3, ...terms }],
    ]),
  };

  /** Share of the computed work by tenant. */
  function sharesWith(routers: number): { shares: Record<string, number>; fleet: Fleet } {
    const forMs = 60_000;
    const fleet = runOverload({
      ...common,
      engines: 4,
      promptTokensMean: 4_000,
      routers,
      admission,
      tenants: [
        // The small one reaches one router alone; the others reach all of them.
        { name: "small", priority: "", perSecond: 80, router: 0 },
        { name: "middle", priority: "", perSecond: 120 },
        { name: "large", priority: "", perSecond: 160 },
      ],
      forMs,
    });
    const shares: Record<string, number> = {};
    let total = 0;
    for (const r of fleet.records) {
      if (r.outcome !== "answered" || r.dueMs < measuredFromMs) continue;
      const tokens = r.promptTokens - r.cachedTokens;
      shares[r.tenant] = (shares[r.tenant] ?? 0) + tokens;
      total += tokens;
    }
    for (const name of Object.keys(shares)) shares[name] = (shares[name] ?? 0) / total;
    return { shares, fleet };
  }

  test("three share workers by weight as one does", { timeout: 300_000 }, () => {
    const one = sharesWith(1).shares;
    const three = sharesWith(3).shares;
    for (const name of ["small", "middle", "large"]) {
      const difference = Math.abs((three[name] ?? 0) - (one[name] ?? 0));
      expect(difference, `${name}: ${three[name]} with three, ${one[name]} with one`).toBeLessThan(
        0.02,
      );
    }
  });
});
