import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { FairQueue, type FairClass } from "../../services/router/core/admission/fair-queue.ts";
import type { Waiter } from "../../services/router/core/admission/waiter.ts";
import { at } from "../support/router-builders.ts";

const classes: readonly FairClass[] = [
  { name: "gold", priority: 1, weight: 1 },
  { name: "chat", priority: 0, weight: 3 },
  { name: "batch", priority: 0, weight: 1 },
];
const weights: Readonly<Record<string, number>> = { a: 1, b: 2, c: 4 };
const tenants = Object.keys(weights);

function queue(tenantsMax = 64): FairQueue<number> {
  return new FairQueue({ classes, weightOf: (tenant) => weights[tenant] ?? 1, tenantsMax });
}

let nextSeq = 0;
function waiter(
  className: string,
  tenant: string,
  costMs: number,
  deadline = 0,
  item = 0,
): Waiter<number> {
  return {
    item,
    ask: { className, tenant, ttftMs: undefined, bytes: 10, constrained: false },
    seq: ++nextSeq,
    queuedAt: at(0),
    deadline,
    estimate: { costMs, firstTokenMs: 1 },
    position: 0,
    blockedBy: "capacity",
    expiresAt: 0,
    refusedAt: 0,
    expiresFor: "wait_timeout",
    account: "",
    orderPlace: -1,
    expiryPlace: -1,
  };
}

function serveHead(q: FairQueue<number>): Waiter<number> | undefined {
  const head = q.head();
  if (head === undefined) return undefined;
  q.remove(head);
  q.serve(head.ask.className, head.ask.tenant, head.estimate.costMs);
  return head;
}

const request = fc.record({
  className: fc.constantFrom(...classes.map((c) => c.name)),
  tenant: fc.constantFrom(...tenants),
  costMs: fc.integer({ min: 1, max: 400 }),
  deadline: fc.integer({ min: 0, max: 50 }),
});
const step = fc.oneof(
  { weight: 3, arbitrary: request.map((r) => ({ kind: "add" as const, ...r })) },
  { weight: 2, arbitrary: fc.constant({ kind: "serve" as const }) },
  {
    weight: 1,
    arbitrary: fc.nat(1_000).map((pick) => ({ kind: "cancel" as const, pick })),
  },
  { weight: 1, arbitrary: request.map((r) => ({ kind: "direct" as const, ...r })) },
);

/** Start-time fair queueing as the paper has it, over plain lists. */
class NaiveQueue {
  readonly waiting: Waiter<number>[] = [];
  readonly #now = new Map<string, number>();
  readonly #tag = new Map<string, number>();
  readonly #began = new Map<string, number>();
  #order = 0;

  #get(map: Map<string, number>, key: string): number {
    return map.get(key) ?? 0;
  }

  #level(className: string): string {
    return `level ${classes.find((c) => c.name === className)?.priority ?? 0}`;
  }

  add(w: Waiter<number>): void {
    const { className, tenant } = w.ask;
    const flow = `${className}/${tenant}`;
    const level = this.#level(className);
    if (!this.waiting.some((o) => o.ask.className === className && o.ask.tenant === tenant)) {
      this.#tag.set(flow, Math.max(this.#get(this.#tag, flow), this.#get(this.#now, className)));
      this.#began.set(flow, ++this.#order);
      if (!this.waiting.some((o) => o.ask.className === className)) {
        this.#tag.set(
          className,
          Math.max(this.#get(this.#tag, className), this.#get(this.#now, level)),
        );
        this.#began.set(className, ++this.#order);
      }
    }
    this.waiting.push(w);
  }

  serve(className: string, tenant: string, costMs: number): void {
    const flow = `${className}/${tenant}`;
    const level = this.#level(className);
    const spec = classes.find((c) => c.name === className);
    const begins = Math.max(this.#get(this.#tag, flow), this.#get(this.#now, className));
    this.#now.set(className, begins);
    this.#tag.set(flow, begins + costMs / (weights[tenant] ?? 1));
    const classBegins = Math.max(this.#get(this.#tag, className), this.#get(this.#now, level));
    this.#now.set(level, classBegins);
    this.#tag.set(className, classBegins + costMs / (spec?.weight ?? 1));
  }

  head(): Waiter<number> | undefined {
    const rank = (w: Waiter<number>): number[] => {
      const { className, tenant } = w.ask;
      const flow = `${className}/${tenant}`;
      return [
        -(classes.find((c) => c.name === className)?.priority ?? 0),
        this.#get(this.#tag, className),
        this.#get(this.#began, className),
        this.#get(this.#tag, flow),
        this.#get(this.#began, flow),
        w.deadline,
        w.seq,
      ];
    };
    return [...this.waiting].sort((x, y) => {
      const a = rank(x);
      const b = rank(y);
      for (let i = 0; i < a.length; i++) {
        const difference = (a[i] as number) - (b[i] as number);
        if (difference !== 0) return difference;
      }
      return 0;
    })[0];
  }

  drop(w: Waiter<number>): void {
    this.waiting.splice(this.waiting.indexOf(w), 1);
  }
}

describe("FairQueue", () => {
  test("serves in the order of a naive model, whatever comes, is cancelled or goes straight through", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const fast = queue();
        const naive = new NaiveQueue();
        for (const s of steps) {
          if (s.kind === "add") {
            const w = waiter(s.className, s.tenant, s.costMs, s.deadline);
            fast.add(w);
            naive.add(w);
          } else if (s.kind === "direct") {
            fast.serve(s.className, s.tenant, s.costMs);
            naive.serve(s.className, s.tenant, s.costMs);
          } else if (s.kind === "cancel") {
            const w = naive.waiting[s.pick % Math.max(1, naive.waiting.length)];
            if (w === undefined) continue;
            expect(fast.remove(w)).toBe(true);
            expect(fast.remove(w)).toBe(false);
            naive.drop(w);
          } else {
            const expected = naive.head();
            const served = serveHead(fast);
            expect(served).toBe(expected);
            if (expected === undefined) continue;
            naive.drop(expected);
            naive.serve(expected.ask.className, expected.ask.tenant, expected.estimate.costMs);
          }
          expect(fast.head()).toBe(naive.head());
          expect(fast.count).toBe(naive.waiting.length);
          expect(fast.bytes).toBe(10 * naive.waiting.length);
          const queued = naive.waiting.reduce((sum, w) => sum + w.estimate.costMs, 0);
          expect(fast.queuedMs).toBeCloseTo(queued, 6);
        }
      }),
      { numRuns: 400 },
    );
  });

  test("shares of tenants that wait all along differ from their weights by one request of each at most", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 50, maxLength: 200 }),
        fc.array(fc.constantFrom(...tenants), { maxLength: 60 }),
        (costs, extra) => {
          const q = queue();
          const served: Record<string, number> = { a: 0, b: 0, c: 0 };
          let next = 0;
          const cost = (): number => costs[next++ % costs.length] as number;
          const waitingOf: Record<string, number> = { a: 0, b: 0, c: 0 };
          const add = (tenant: string): void => {
            q.add(waiter("chat", tenant, cost()));
            waitingOf[tenant] = (waitingOf[tenant] ?? 0) + 1;
          };
          for (const tenant of [...tenants, ...extra]) add(tenant);
          for (let i = 0; i < 300; i++) {
            const w = serveHead(q);
            if (w === undefined) break;
            const { tenant } = w.ask;
            served[tenant] = (served[tenant] ?? 0) + w.estimate.costMs;
            waitingOf[tenant] = (waitingOf[tenant] ?? 0) - 1;
            for (const t of tenants) if (waitingOf[t] === 0) add(t);
            for (const x of tenants) {
              for (const y of tenants) {
                const gap =
                  (served[x] ?? 0) / (weights[x] ?? 1) - (served[y] ?? 0) / (weights[y] ?? 1);
                expect(Math.abs(gap)).toBeLessThanOrEqual(
                  400 / (weights[x] ?? 1) + 400 / (weights[y] ?? 1) + 1e-6,
                );
              }
            }
          }
        },
      ),
      { numRuns: 100 },
    );
  });

  test("nobody who waits in a priority that is served starves", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 20 }), (costs) => {
        const q = queue();
        let next = 0;
        const cost = (): number => costs[next++ % costs.length] as number;
        for (let i = 0; i < 5; i++) q.add(waiter("chat", "c", cost()));
        const lonely = waiter("batch", "a", 400);
        q.add(lonely);
        // `chat` has three times the weight: it may be three largest requests ahead, and one in service.
        let served = 0;
        while (lonely.orderPlace >= 0) {
          const w = serveHead(q);
          if (w !== undefined && w !== lonely) served += w.estimate.costMs;
          q.add(waiter("chat", "c", cost()));
        }
        expect(served).toBeLessThanOrEqual(3 * 400 + 400);
      }),
      { numRuns: 100 },
    );
  });

  test("keeps a bounded number of accounts, whatever names come, and loses nobody", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(500), fc.integer({ min: 1, max: 50 }), fc.boolean()), {
          maxLength: 300,
        }),
        (asks) => {
          const q = queue(8);
          let added = 0;
          let served = 0;
          for (const [name, cost, serve] of asks) {
            q.add(waiter("chat", `t${name}`, cost));
            added++;
            if (serve && serveHead(q) !== undefined) served++;
            expect(q.flowCount).toBeLessThanOrEqual(9);
          }
          while (serveHead(q) !== undefined) served++;
          expect(served).toBe(added);
          expect([q.count, q.bytes, q.queuedMs]).toEqual([0, 0, 0]);
        },
      ),
    );
  });

  test("work before a newcomer is what is really served before it when nobody else comes", () => {
    fc.assert(
      fc.property(fc.array(request, { maxLength: 60 }), request, (asks, last) => {
        const q = queue();
        for (const { className, tenant, costMs, deadline } of asks) {
          q.add(waiter(className, tenant, costMs, deadline));
        }
        const predicted = q.workBefore(last.className, last.tenant);
        const mine = waiter(last.className, last.tenant, last.costMs, 1_000);
        q.add(mine);
        let before = 0;
        while (mine.orderPlace >= 0) {
          const w = serveHead(q);
          if (w !== undefined && w !== mine) before += w.estimate.costMs;
        }
        // Whole requests, not parts: one of every other tenant and of every other class may be out.
        expect(Math.abs(before - predicted)).toBeLessThanOrEqual(400 * 3 * 4);
        expect(before).toBeGreaterThanOrEqual(predicted - 400 * 3 * 4);
      }),
    );
  });
});
