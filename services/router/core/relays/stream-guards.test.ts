import { describe, expect, test } from "vitest";
import {
  at,
  memberFacts,
  placeInput,
  routerCore,
  servedRecord,
} from "../../../../test/support/router-builders.ts";
import type { Decision } from "../decisions/decision.ts";
import { pairDefaults } from "../placement/pairs/pair-placer.ts";
import type { RouterCore } from "../router-core.ts";
import type { GuardAsk } from "./decision-guard.ts";

const everything: GuardAsk = { mode: "relay", off: "" };

function guardedCore(over: { readonly engineName?: string; readonly relays?: number } = {}) {
  const { engineName = "vllm", relays = 2 } = over;
  const core = routerCore();
  core.admit(memberFacts(0, { engineName }), 1, at(0));
  for (let i = 0; i < relays; i++) {
    core.relays.attach(
      {
        instance: `relay-${i}`,
        epoch: 1,
        h2Address: `127.0.0.1:${9_100 + i}`,
        httpAddress: `127.0.0.1:${9_200 + i}`,
        engines: ["vllm", "sglang"],
        streamsMax: 100,
      },
      10 + i,
    );
  }
  return core;
}

const place = (core: RouterCore, guard?: GuardAsk, dryRun = false): Decision =>
  core.place(placeInput({ dryRun, ...(guard === undefined ? {} : { guard }) }), at(100));

describe("a stream that is to be guarded", () => {
  test("goes to relays, those with the fewest requests first, and its worker is reserved as ever", () => {
    const core = guardedCore();
    const [first, second] = [place(core, everything), place(core, everything)];
    expect(first.guard?.relays).toHaveLength(2);
    expect(first.endpoints).toEqual(
      first.guard?.relays.map((name) => `127.0.0.1:910${name.slice(-1)}`),
    );
    // Each counts for its relay at once.
    expect(second.guard?.relays[0]).not.toBe(first.guard?.relays[0]);
    expect([first.workerId, second.workerId]).toEqual(["w0", "w0"]);
    expect(core.book.openCount).toBe(2);
    place(core, everything, true);
    expect(core.relays.all().map((relay) => relay.sinceReport)).toEqual([1, 1]);
  });

  test("counts as served where it was placed whichever of its relays carried it", () => {
    const core = guardedCore();
    const decision = place(core, everything);
    const last = decision.endpoints.at(-1) ?? "";
    core.served(decision.id, servedRecord(0, { servedEndpoint: last }), at(900));
    expect(decision.observed).toMatchObject({ servedAsPicked: true, cachedTokens: 1_584 });
    expect(core.book.openCount).toBe(0);
  });

  test.each([
    ["engine", guardedCore({ engineName: "sglang" }), everything],
    ["engine", guardedCore({ engineName: "other" }), everything],
    ["no_relay", guardedCore({ relays: 0 }), everything],
    ["tools", guardedCore(), { mode: "relay", off: "tools" } as const],
  ])("goes as it would, and says %s, where it cannot be", (reason, core, guard) => {
    const decision = place(core, guard);
    expect(decision.guard).toEqual({ off: reason, relays: [] });
    expect(decision.endpoints).toEqual(["127.0.0.1:8100"]);
  });

  test("passes no relay for its guard alone unless asked to", () => {
    const core = guardedCore();
    const decision = place(core, { mode: "pairs", off: "" });
    expect([decision.guard, decision.endpoints]).toEqual([undefined, ["127.0.0.1:8100"]]);
    expect(place(core).guard).toBeUndefined();
  });

  test("is guarded by the relay that carries out its pair", () => {
    const core = routerCore({ pairs: { ...pairDefaults, mode: "always" } });
    const connector = { kvTransfer: "NixlConnector" };
    core.admit(memberFacts(0, { role: "prefill", ...connector }), 1, at(0));
    core.admit(memberFacts(1, { role: "decode", ...connector }), 2, at(0));
    core.relays.attach(
      {
        instance: "relay-0",
        epoch: 1,
        h2Address: "127.0.0.1:9100",
        httpAddress: "127.0.0.1:9200",
        engines: ["vllm"],
        streamsMax: 100,
      },
      10,
    );
    const input = placeInput({ isPairable: true, guard: { mode: "pairs", off: "" } });
    const decision = core.place(input, at(100));
    expect(decision).toMatchObject({ pair: { form: "pair" }, guard: { off: "", relays: [] } });
  });
});
