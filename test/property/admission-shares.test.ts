import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  divide,
  RouterShares,
  type TenantDemand,
} from "../../services/router/core/admission/router-shares.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { workerId } from "../../services/shared/core/ids.ts";
import { at } from "../support/router-builders.ts";

const weights: Readonly<Record<string, number>> = { a: 1, b: 2, c: 3 };
const termsOf = (className: string, tenant: string) => ({
  priority: className === "gold" ? 1 : 0,
  weight: weights[tenant] ?? 1,
});
const demand = fc.record({
  className: fc.constantFrom("gold", "chat"),
  tenant: fc.constantFrom("a", "b", "c"),
  queuedMs: fc.integer({ min: 0, max: 2_000 }),
});

describe("divide", () => {
  test("gives parts that sum to one, nothing to whom nobody waits at, all to one alone", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(demand, { maxLength: 5 }), { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 1, max: 3_000 }),
        (routers, capacityMs) => {
          const byRouter = new Map(routers.map((demands, i) => [`r${i}`, demands]));
          const shares = divide(byRouter, termsOf, capacityMs);
          const sum = [...shares.values()].reduce((a, b) => a + b, 0);
          const asked = routers.flat().some((d) => d.queuedMs > 0);
          expect(sum).toBeCloseTo(asked ? 1 : 0, 9);
          for (const [i, demands] of routers.entries()) {
            const part = shares.get(`r${i}`) ?? 0;
            expect(part).toBeGreaterThanOrEqual(0);
            if (demands.every((d) => d.queuedMs === 0)) expect(part).toBe(0);
          }
        },
      ),
    );
  });

  test("fills priorities first and divides by weight wherever tenants wait", () => {
    const one = (tenant: string, className = "chat") => ({ className, tenant, queuedMs: 10_000 });
    const shares = divide(
      new Map([
        ["r0", [one("a"), one("c")]],
        ["r1", [one("c")]],
      ]),
      termsOf,
      100,
    );
    // a gets a quarter, all of it at r0; c gets the rest, half of it at each.
    expect(shares.get("r0")).toBeCloseTo(0.25 + 0.375);
    const gold = new Map([
      ["r0", [one("c")]],
      ["r1", [{ ...one("a", "gold"), queuedMs: 60 }]],
    ]);
    expect(divide(gold, termsOf, 100).get("r1")).toBeCloseTo(0.6);
  });
});

/** Three routers that each know of each other's placements 5 to 60 ms late and fill the same workers. */
function fillTogether(seed: number, costMs: number, targetMs: number, jitter: boolean) {
  const random = new SeededRandom(seed);
  const names = ["r0", "r1", "r2"];
  const workers = Array.from({ length: 6 }, (_, i) => workerId(`w${i}`));
  const routers = names.map((self) => new RouterShares({ self, termsOf, accountsMax: 100 }));
  const trueFreeAt = new Map(workers.map((w) => [w, 0]));
  /** What a router knows: placements of all with the time at which it hears of them. */
  const heard: { at: number; worker: string; placedAt: number; costMs: number; by: number }[] = [];
  const knownFreeAt = names.map(() => new Map<string, number>());
  const own: Omit<TenantDemand, "servedMs">[] = [
    { className: "chat", tenant: "a", queuedMs: 50_000 },
  ];
  let worst = 0;
  let placed = 0;
  const byRouter = [0, 0, 0];
  const forMs = 20_000;
  for (let now = 0; now < forMs; now++) {
    if (now % 50 === 0) {
      for (const [i, router] of routers.entries()) {
        for (const [j, peer] of routers.entries()) {
          if (i !== j) peer.take(names[i] as string, router.demand(own, at(now)), at(now));
        }
      }
    }
    for (let r = 0; r < names.length; r++) {
      const known = knownFreeAt[r] as Map<string, number>;
      for (const h of heard) {
        if (h.at === now && h.by !== r) {
          known.set(h.worker, Math.max(known.get(h.worker) ?? 0, h.placedAt) + h.costMs);
        }
      }
      for (const worker of workers) {
        for (;;) {
          const backlog = Math.max(0, (known.get(worker) ?? 0) - now);
          if (backlog > targetMs) break;
          const cost = jitter ? costMs * (0.5 + random.next()) : costMs;
          const question = {
            worker,
            roomAt: now,
            ask: { className: "chat", tenant: "a", queuedMs: cost },
            capacityMsPerMs: workers.length,
          };
          if ((routers[r] as RouterShares).turnAt(question, at(now)) > now) break;
          known.set(worker, Math.max(known.get(worker) ?? 0, now) + cost);
          const before = Math.max(0, (trueFreeAt.get(worker) ?? 0) - now);
          trueFreeAt.set(worker, now + before + cost);
          // One request may begin below the target and end above it; that is what one router does too.
          if (now > 500) worst = Math.max(worst, (before - targetMs) / cost);
          placed += cost;
          byRouter[r] = (byRouter[r] as number) + cost;
          heard.push({ at: now + 5 + random.int(55), worker, placedAt: now, costMs: cost, by: r });
        }
      }
    }
    while (heard.length > 0 && (heard[0]?.at ?? 0) < now - 100) heard.shift();
  }
  return {
    worst,
    use: placed / (forMs * workers.length),
    byRouter: byRouter.map((b) => b / placed),
  };
}

describe("RouterShares", () => {
  test.each([10, 30, 80, 200])(
    "three routers place at most one request of %i ms too many on a worker, and keep all busy",
    (costMs) => {
      for (const seed of [1, 2, 3]) {
        const { worst, use, byRouter } = fillTogether(
          seed,
          costMs,
          Math.max(60, 1.5 * costMs),
          false,
        );
        expect(worst).toBeLessThanOrEqual(1);
        expect(use).toBeGreaterThan(0.97);
        for (const part of byRouter) expect(Math.abs(part - 1 / 3)).toBeLessThan(0.05);
      }
    },
  );

  test("divides nothing while nobody waits elsewhere, or when the others have fallen silent", () => {
    const shares = new RouterShares({ self: "r0", termsOf, accountsMax: 10 });
    expect(shares.isDivided(at(0))).toBe(false);
    const waiting = [{ className: "chat", tenant: "a", queuedMs: 100, servedMs: 0 }];
    shares.take("r1", waiting, at(0));
    expect(shares.isDivided(at(400))).toBe(true);
    expect(shares.isDivided(at(600))).toBe(false);
    shares.take("r1", waiting, at(700));
    shares.routerLost("r1");
    expect(shares.isDivided(at(700))).toBe(false);
  });

  test("tells services once each, corrections as they come, and nothing of before it listened", () => {
    const shares = new RouterShares({ self: "r0", termsOf, accountsMax: 10 });
    const told = (servedMs: number) =>
      shares
        .take("r1", [{ className: "chat", tenant: "a", queuedMs: 0, servedMs }], at(0))
        .map((s) => s.costMs);
    expect(told(1_000)).toEqual([]);
    expect(told(1_200)).toEqual([200]);
    expect(told(1_200)).toEqual([]);
    expect(told(1_150)).toEqual([-50]);
    // The router began anew.
    expect(told(30)).toEqual([30]);
  });

  test("keeps a bounded number of accounts and tells at most so many", () => {
    const shares = new RouterShares({ self: "r0", termsOf, accountsMax: 50 });
    for (let i = 0; i < 500; i++) shares.served("chat", `t${i}`, 1, at(i));
    expect(shares.demand([], at(500)).length).toBeLessThanOrEqual(50);
  });
});
