import { expect, test } from "vitest";
import {
  at,
  memberFacts,
  placeInput,
  routerCore,
} from "../../../../../test/support/router-builders.ts";
import { readHints } from "../../admission/request-hints.ts";
import { roomDefaults } from "../../admission/worker-rooms.ts";
import type { Decision } from "../../decisions/decision.ts";
import type { RouterCore } from "../../router-core.ts";
import { pairDefaults } from "./pair-placer.ts";

const hints = readHints(() => undefined, undefined);

/** Engines that compute prompts only and answers only, one request each at a time, and a relay unless told otherwise. */
function splitCore(hasRelay = true): RouterCore {
  const core = routerCore({ pairs: pairDefaults, rooms: { ...roomDefaults, openMax: 1 } });
  // SGLang's decode engines take no whole requests.
  const facts = { engineName: "sglang", kvTransfer: "nixl", kvBootstrap: "127.0.0.1:9000" };
  core.admit(memberFacts(0, { role: "prefill", ...facts }), 1, at(0));
  core.admit(memberFacts(1, { role: "decode", ...facts }), 2, at(0));
  if (!hasRelay) return core;
  core.relays.attach(
    {
      instance: "relay-0",
      epoch: 1,
      h2Address: "127.0.0.1:9100",
      httpAddress: "127.0.0.1:9101",
      engines: ["sglang"],
      streamsMax: 100,
    },
    1,
  );
  return core;
}

function arrive(
  core: RouterCore,
  now: number,
): { readonly made: Decision[]; readonly waits: boolean } {
  const made: Decision[] = [];
  const input = placeInput({ isPairable: true });
  const request = { input, hints, bytes: 0, decided: (decision: Decision) => made.push(decision) };
  const waiting = core.placeInTurn(request, at(now));
  return { made, waits: waiting !== undefined };
}

test("a request waits for room on a pair where nobody takes it whole", () => {
  const core = splitCore();
  const first = arrive(core, 100);
  expect(first.made).toMatchObject([{ outcome: { kind: "placed" }, pair: { form: "pair" } }]);
  const second = arrive(core, 101);
  expect([second.made, second.waits]).toEqual([[], true]);
  // Asked for without a turn it is placed all the same.
  expect(core.place(placeInput({ isPairable: true, dryRun: true }), at(102)).outcome.kind).toBe(
    "placed",
  );
  core.release(first.made[0]?.id ?? "", at(200));
  core.pump(at(200));
  expect(second.made).toMatchObject([
    { outcome: { kind: "placed" }, pair: { form: "pair" }, admission: { waitedMs: 99 } },
  ]);
});

test("a third that comes while one waits is weighed as a pair, too", () => {
  const core = splitCore();
  arrive(core, 100);
  arrive(core, 101);
  const gate = core.gates.get("default");
  const before = gate?.admission.waitingCount;
  const third = arrive(core, 102);
  expect([before, third.waits, gate?.admission.waitingCount]).toEqual([1, true, 2]);
  const queued = core.demand(at(103)).flatMap(({ tenants }) => tenants.map((t) => t.queuedMs));
  // Far more than the millisecond of a request that nobody can weigh.
  expect(Math.max(...queued)).toBeGreaterThan(10);
});

test("without a relay it is refused at once, and told why", () => {
  const core = splitCore(false);
  const { made } = arrive(core, 100);
  expect(made).toMatchObject([
    {
      outcome: {
        kind: "no_worker",
        code: "no_ready_worker",
        message:
          "no worker of pool default can take the request: 2 wrong_role; nor can a pair: no_relay",
      },
      pair: { form: "whole", why: "no_relay" },
    },
  ]);
});
