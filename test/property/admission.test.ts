import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { AdmissionClass } from "../../services/router/core/admission/options.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { AdmissionPool, requestBytes, type PoolRequest } from "../support/admission-pool.ts";

const classes: readonly AdmissionClass[] = [
  { name: "gold", priority: 1, weight: 1, ttftMs: 0, itlMs: 0, waitMsMax: 3_000 },
  { name: "chat", priority: 0, weight: 3, ttftMs: 0, itlMs: 0, waitMsMax: 2_000 },
  { name: "batch", priority: 0, weight: 1, ttftMs: 900, itlMs: 0, waitMsMax: 2_000 },
  { name: "spare", priority: -1, weight: 1, ttftMs: 0, itlMs: 0, waitMsMax: 0 },
];
const countMax = 12;
const tenantShareMax = 0.5;

const event = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("arrive" as const),
      className: fc.constantFrom("gold", "chat", "batch", "spare", "unheard-of"),
      tenant: fc.constantFrom("a", "b", "c"),
      costMs: fc.integer({ min: 5, max: 300 }),
      ttftMs: fc.option(fc.integer({ min: 1, max: 2_000 }), { nil: undefined }),
      only: fc.option(fc.nat(2), { nil: undefined, freq: 8 }),
    }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("pass" as const), ms: fc.nat(150) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("cancel" as const), pick: fc.nat() }) },
);

describe("Admission", () => {
  test("refuses who waits when it stops, and everyone after", () => {
    const pool = new AdmissionPool({ servers: 1, roomMs: 1 });
    const request = { className: "", tenant: "a", costMs: 100 };
    for (const id of [0, 1]) pool.arrive({ ...request, id });
    const late = pool.admission.stop(pool.now);
    expect(late.map(({ refusal }) => refusal.reason)).toEqual(["shutting_down"]);
    pool.advanceTo(10_000);
    pool.arrive({ ...request, id: 2 });
    expect(pool.ends.at(-1)?.refusal?.reason).toBe("shutting_down");
  });

  test("answers every request exactly once, within its bounds, and lets no room stand idle", () => {
    fc.assert(
      fc.property(fc.array(event, { maxLength: 250 }), (events) => {
        const pool = new AdmissionPool({
          servers: 3,
          roomMs: 30,
          admission: {
            classes,
            defaultClass: "chat",
            countMax,
            bytesMax: countMax * requestBytes - 1,
            tenantShareMax,
          },
        });
        let id = 0;
        for (const e of events) {
          if (e.kind === "arrive") {
            const { className, tenant, costMs, ttftMs, only } = e;
            const request: PoolRequest = {
              id: id++,
              className,
              tenant,
              costMs,
              ...(ttftMs === undefined ? {} : { ttftMs }),
              ...(only === undefined ? {} : { only }),
            };
            pool.arrive(request);
          } else if (e.kind === "pass") pool.advanceTo(pool.now + e.ms);
          else {
            const ids = [...pool.waiting.keys()];
            const pick = ids[e.pick % Math.max(1, ids.length)];
            if (pick !== undefined) pool.cancel(pick);
          }
          // Places given up to requests of a higher priority are told by the next pump.
          pool.pump();
          const { queue } = pool.admission;
          expect(queue.count).toBe(pool.waiting.size);
          expect(queue.bytes).toBeLessThanOrEqual(countMax * requestBytes - 1);
          for (const { name } of classes) {
            for (const tenant of ["a", "b", "c"]) {
              const held = queue.heldBy(name, tenant);
              expect(held.count).toBeLessThanOrEqual(countMax * tenantShareMax);
            }
          }
          const head = queue.head();
          if (head !== undefined && !head.ask.constrained) {
            expect(pool.hasRoom(undefined)).toBe(false);
          }
        }
        pool.advanceTo(pool.now + 10_000);
        expect(pool.waiting.size).toBe(0);
        expect(pool.admission.wakeAt(pool.now)).toBeUndefined();
        const ended = pool.ends.map((end) => end.request.id).sort((x, y) => x - y);
        expect(ended).toEqual(Array.from({ length: pool.arrived }, (_, i) => i));
        for (const end of pool.ends) {
          const spec = pool.admission.classOf(end.request.className);
          expect(end.waitedMs).toBeLessThanOrEqual(spec.waitMsMax + 1);
          if (end.kind !== "refused") continue;
          expect(end.refusal?.retryAfterMs).toBeGreaterThan(0);
          expect(end.refusal?.retryAfterMs).toBeLessThanOrEqual(37_500);
          const isTenants = end.refusal?.reason.startsWith("tenant_");
          expect(end.refusal?.isTenantLimit).toBe(isTenants);
        }
      }),
      { numRuns: 500 },
    );
  });

  test("below saturation nothing waits and nothing is refused", () => {
    const pool = new AdmissionPool({ servers: 8, roomMs: 100 });
    const random = new SeededRandom(5);
    for (let id = 0; id < 5_000; id++) {
      // 60 % load with costs around 50 ms.
      pool.advanceTo(pool.now - (Math.log(1 - random.next()) * 50) / (8 * 0.6));
      pool.arrive({
        id,
        className: "",
        tenant: `t${random.int(5)}`,
        costMs: 20 + random.int(60),
      });
    }
    expect(pool.ends).toHaveLength(5_000);
    expect(pool.ends.filter((end) => end.kind !== "served" || end.waitedMs > 0)).toEqual([]);
  });
});

/** Poisson arrivals of several tenants for a while, after which the shares of served work are given. */
function overload(
  seed: number,
  facts: {
    readonly pool: AdmissionPool;
    readonly tenants: readonly { name: string; className: string; load: number; meanMs: number }[];
    readonly forMs: number;
  },
): Record<string, number> {
  const { pool, tenants, forMs } = facts;
  const random = new SeededRandom(seed).fork("overload");
  const next = tenants.map(() => 0);
  const gap = (i: number): number => {
    const { load, meanMs } = tenants[i] as (typeof tenants)[number];
    return (-Math.log(1 - random.next()) * meanMs) / (load * pool.freeAt.length);
  };
  for (const i of tenants.keys()) next[i] = gap(i);
  for (let id = 0; ; id++) {
    const soonest = Math.min(...next);
    if (soonest > forMs) break;
    const i = next.indexOf(soonest);
    const { name, className, meanMs } = tenants[i] as (typeof tenants)[number];
    pool.advanceTo(soonest);
    pool.arrive({ id, tenant: name, className, costMs: meanMs * (0.5 + random.next()) });
    next[i] = soonest + gap(i);
  }
  const share: Record<string, number> = {};
  let total = 0;
  for (const end of pool.ends) {
    if (end.kind !== "served" || end.at < forMs / 5) continue;
    share[end.request.tenant] = (share[end.request.tenant] ?? 0) + end.request.costMs;
    total += end.request.costMs;
  }
  for (const name of Object.keys(share)) share[name] = (share[name] ?? 0) / total;
  return share;
}

describe("Admission under overload", () => {
  test("shares the pool by the tenants' weights, whatever they offer and however large their requests are", () => {
    const terms = { requestsPerSecond: 0, tokensPerSecond: 0 };
    for (const seed of [1, 2, 3]) {
      const pool = new AdmissionPool({
        servers: 8,
        roomMs: 50,
        admission: {
          tenants: new Map([
            ["one", { weight: 1, ...terms }],
            ["two", { weight: 2, ...terms }],
            ["five", { weight: 5, ...terms }],
          ]),
        },
      });
      const share = overload(seed, {
        pool,
        forMs: 60_000,
        tenants: [
          { name: "one", className: "", load: 6, meanMs: 30 },
          { name: "two", className: "", load: 2, meanMs: 60 },
          { name: "five", className: "", load: 2, meanMs: 20 },
        ],
      });
      expect(share["one"]).toBeGreaterThan(0.95 / 8);
      expect(share["one"]).toBeLessThan(1.05 / 8);
      expect(share["two"]).toBeGreaterThan(1.9 / 8);
      expect(share["two"]).toBeLessThan(2.1 / 8);
    }
  });

  test("gives a tenant that asks for less than its share all of it, and the rest to the others", () => {
    const pool = new AdmissionPool({ servers: 8, roomMs: 50 });
    const share = overload(4, {
      pool,
      forMs: 60_000,
      tenants: [
        { name: "light", className: "", load: 0.2, meanMs: 40 },
        { name: "heavy", className: "", load: 10, meanMs: 40 },
      ],
    });
    expect(share["light"]).toBeGreaterThan(0.19);
    const light = pool.ends.filter((end) => end.request.tenant === "light" && end.at > 12_000);
    const refused = light.filter((end) => end.kind === "refused").length;
    expect(refused / light.length).toBeLessThan(0.02);
    const reasons = new Set(
      pool.ends.flatMap((e) =>
        e.request.tenant === "heavy" && e.at > 12_000 && e.refusal !== undefined
          ? [e.refusal.reason]
          : [],
      ),
    );
    expect(reasons).toContain("tenant_share");
  });

  test("serves a higher priority as if it were alone", () => {
    const pool = new AdmissionPool({
      servers: 8,
      roomMs: 50,
      admission: { classes, defaultClass: "chat" },
    });
    const share = overload(5, {
      pool,
      forMs: 60_000,
      tenants: [
        { name: "vip", className: "gold", load: 0.7, meanMs: 40 },
        { name: "crowd", className: "chat", load: 5, meanMs: 40 },
      ],
    });
    expect(share["vip"]).toBeGreaterThan(0.65);
    const vip = pool.ends.filter((end) => end.request.tenant === "vip");
    expect(vip.filter((end) => end.kind === "refused")).toEqual([]);
  });

  test("keeps servers busy, waits short and refusals quick at ten times the load", () => {
    const pool = new AdmissionPool({ servers: 8, roomMs: 50 });
    const forMs = 120_000;
    overload(6, {
      pool,
      forMs,
      tenants: [{ name: "", className: "", load: 10, meanMs: 40 }],
    });
    const served = pool.ends.filter((end) => end.kind === "served");
    // The beginning may pass for a burst, in which requests may wait for longer.
    const steady = served.filter((end) => end.at > 10_000);
    const work = served.reduce((sum, end) => sum + end.request.costMs, 0);
    expect(work / (8 * forMs)).toBeGreaterThan(0.99);
    const waits = steady.map((end) => end.waitedMs).sort((a, b) => a - b);
    expect(waits[Math.floor(waits.length * 0.99)]).toBeLessThan(250);
    const refused = pool.ends.filter((end) => end.kind === "refused");
    const late = refused.filter((end) => end.waitedMs > 50);
    expect(late.length / refused.length).toBeLessThan(0.01);
  });
});
