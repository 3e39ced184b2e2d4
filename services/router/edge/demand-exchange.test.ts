import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { pino } from "pino";
import { afterEach, describe, expect, test, vi } from "vitest";

import { memberFacts, placeInput, routerCore } from "../../../test/support/router-builders.ts";
import { parseCidr } from "../../shared/core/cidr.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { createGrpcServer, listen, type GrpcServer } from "../../shared/edge/grpc-server.ts";
import { createKeysFile, loadKeys } from "../../shared/edge/keys.ts";
import {
  PeerService as PeerDefinition,
  type TenantDemand,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { roomDefaults } from "../core/admission/worker-rooms.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { AccessOutcomes } from "./access-outcomes.ts";
import { DemandExchange, isDemand, takeDemand } from "./demand-exchange.ts";
import { PeerLinks } from "./peer-links.ts";
import { PeerService } from "./peer-server.ts";

function demand(over: Partial<TenantDemand> = {}): TenantDemand {
  return { className: "default", tenant: "a", queuedMs: 50, servedMs: 10, ...over };
}

/** A router with one worker that takes one request at a time. */
function narrowCore(prefix: string): RouterCore {
  const core = routerCore({
    decisionPrefix: prefix,
    rooms: { ...roomDefaults, openMax: 1 },
  });
  core.admit(memberFacts(0), 1, realClock.now());
  return core;
}

/** Asks for a place in turn; the second request of a narrow core waits. */
function ask(core: RouterCore, requestId: string, tenant: string): void {
  core.placeInTurn(
    {
      input: placeInput({ requestId }),
      hints: { tenant, priority: "", session: "", ttftMs: undefined, itlMs: undefined },
      bytes: 0,
      decided: () => undefined,
    },
    realClock.now(),
  );
}

describe("demand that a peer tells", () => {
  test("is believed when it is finite, not negative and named", () => {
    expect(isDemand(demand())).toBe(true);
    expect(isDemand(demand({ tenant: "" }))).toBe(true);
    for (const bad of [
      { queuedMs: NaN },
      { queuedMs: -1 },
      { queuedMs: Infinity },
      { queuedMs: 1e13 },
      { servedMs: NaN },
      { servedMs: -Infinity },
      { servedMs: 1e13 },
      { className: "" },
      { className: "c".repeat(129) },
      { tenant: "t".repeat(129) },
    ]) {
      expect(isDemand(demand(bad)), JSON.stringify(bad)).toBe(false);
    }
  });

  test("is cut to what one message may hold, and counted", () => {
    const core = narrowCore("r0.1");
    const many = Array.from({ length: 600 }, (_, i) => demand({ tenant: `t${i}` }));
    const now = realClock.now();
    expect(takeDemand(core, "r1", { pools: [{ pool: "default", tenants: many }] }, now)).toBe(88);
    const pools = Array.from({ length: 300 }, (_, i) => ({ pool: `p${i}`, tenants: [demand()] }));
    expect(takeDemand(core, "r1", { pools }, now)).toBe(44);
    // Pools that nobody here has heard of get no queue of their own.
    expect([...core.gates.keys()]).toEqual(["default"]);
    const long = { pools: [{ pool: "p".repeat(200), tenants: [] }] };
    expect(takeDemand(core, "r1", long, now)).toBe(1);
  });

  test("never stops a router from placing, whatever it is", () => {
    const number = fc.oneof(fc.double(), fc.constantFrom(NaN, Infinity, -Infinity, -0, 1e308));
    const garbage = fc.record({
      pool: fc.oneof(fc.constant("default"), fc.string({ maxLength: 300 })),
      tenants: fc.array(
        fc.record({
          className: fc.oneof(fc.constant("default"), fc.string({ maxLength: 300 })),
          tenant: fc.string({ maxLength: 300 }),
          queuedMs: number,
          servedMs: number,
        }),
        { maxLength: 20 },
      ),
    });
    fc.assert(
      fc.property(fc.array(fc.array(garbage, { maxLength: 5 }), { maxLength: 20 }), (messages) => {
        const core = narrowCore("r0.1");
        for (const pools of messages) takeDemand(core, "r1", { pools }, realClock.now());
        core.routerLost("r1", realClock.now());
        let placed = 0;
        core.placeInTurn(
          {
            input: placeInput(),
            hints: { tenant: "a", priority: "", session: "", ttftMs: undefined, itlMs: undefined },
            bytes: 0,
            decided: ({ outcome }) => {
              if (outcome.kind === "placed") placed++;
            },
          },
          realClock.now(),
        );
        expect(placed).toBe(1);
        for (const { tenants } of core.demand(realClock.now())) {
          for (const { queuedMs, servedMs } of tenants) {
            expect(Number.isFinite(queuedMs) && Number.isFinite(servedMs)).toBe(true);
          }
        }
      }),
      { numRuns: 50 },
    );
  });
});

describe("two routers over a socket", () => {
  const ends: (() => void)[] = [];
  afterEach(() => {
    for (const end of ends.splice(0).reverse()) end();
  });

  test("one divides room while requests wait at the other, and no longer", async () => {
    const folder = mkdtempSync(join(tmpdir(), "kvmesh-demand-"));
    ends.push(() => {
      rmSync(folder, { recursive: true });
    });
    createKeysFile(join(folder, "mesh.keys"));
    const keys = loadKeys(join(folder, "mesh.keys"));
    const log = pino({ level: "silent" });
    const here = narrowCore("r0.1");
    const there = narrowCore("r1.1");
    const refused: string[] = [];
    const service = new PeerService({
      core: here,
      outcomes: {} as unknown as AccessOutcomes,
      keys,
      clock: realClock,
      log,
      instance: "r0",
      epoch: 1,
      blockSizeTokens: 16,
      allowedCidrs: [parseCidr("127.0.0.0/8")].flatMap((cidr) => cidr ?? []),
      onRefused: (what) => {
        refused.push(what);
      },
      settle: () => {
        here.takeEffects();
      },
    });
    const server: GrpcServer = createGrpcServer({
      callers: [
        {
          service: "kvmesh.router.v1.Peer",
          allowed: [parseCidr("127.0.0.0/8")].flatMap((cidr) => cidr ?? []),
        },
      ],
      messageBytesMax: 1024 * 1024,
      reflection: false,
    });
    server.add(PeerDefinition, service.service);
    const port = await listen(server.server, "127.0.0.1", 0);
    ends.push(() => {
      server.server.forceShutdown();
    });
    const peers = new PeerLinks({
      addresses: [`127.0.0.1:${port}`],
      instance: "r1",
      epoch: 1,
      keys,
      clock: realClock,
      log,
      blockSizeTokens: 16,
      controlAddress: () => "127.0.0.1:1",
      snapshot: () => ({ members: [], reservations: [], relays: [] }),
      onDropped: () => undefined,
      onUnproven: () => undefined,
    });
    peers.start();
    const exchange = new DemandExchange({ core: there, peers, clock: realClock });
    exchange.start();
    ends.push(() => {
      exchange.stop();
      peers.stop();
    });
    await vi.waitFor(() => {
      expect(service.syncedCount).toBe(1);
    });
    expect(here.isShort(realClock.now())).toBe(false);

    ask(there, "first", "a");
    ask(there, "second", "b");
    ask(there, "third", "b");
    expect(there.gates.get("default")?.admission.waitingCount).toBe(2);
    await vi.waitFor(() => {
      expect(here.isShort(realClock.now())).toBe(true);
    });
    const shares = here.gates.get("default")?.shares;
    expect(shares?.queuedElsewhereMs(realClock.now())).toBeGreaterThan(0);
    await vi.waitFor(() => {
      expect(shares?.tenantElsewhereMs("default", "b", realClock.now())).toBeGreaterThan(0);
    });
    expect(shares?.tenantElsewhereMs("default", "a", realClock.now())).toBe(0);

    there.stopWaiting(realClock.now());
    await vi.waitFor(
      () => {
        expect(here.isShort(realClock.now())).toBe(false);
      },
      { timeout: 3_000 },
    );
    expect(refused).toEqual([]);
  });
});
