import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { monoMs } from "../../../shared/core/ids.ts";
import { pollStates, RoomTable } from "./rooms.ts";

const at = monoMs(0);

describe("rooms", () => {
  test("have SGLang's poll states", () => {
    const url = new URL("../../../../test/fixtures/pd/sglang.json", import.meta.url);
    const written = JSON.parse(readFileSync(url, "utf8")) as { poll_states: unknown };
    expect(pollStates).toEqual(written.poll_states);
  });

  test.each(["leg first", "pull first"])("%s: meet, prefill, send, and are forgotten", (order) => {
    const rooms = new RoomTable<string, string>(1_000);
    const first =
      order === "leg first" ? rooms.enterLeg("1", "leg", at) : rooms.enterPull("1", "pull", at);
    expect(first?.state).toBe("bootstrapping");
    const second =
      order === "leg first" ? rooms.enterPull("1", "pull", at) : rooms.enterLeg("1", "leg", at);
    expect(second).toMatchObject({ state: "waitingForInput", leg: "leg", pull: "pull" });
    expect(rooms.apply("1", "sent")).toBe(false);
    expect(rooms.apply("1", "prefilled")).toBe(true);
    expect(rooms.apply("1", "sent")).toBe(true);
    expect(rooms.size).toBe(0);
    expect(rooms.enterLeg("1", "again", at)?.state).toBe("bootstrapping");
  });

  test("take one leg and one pull", () => {
    const rooms = new RoomTable<string, string>(1_000);
    rooms.enterLeg("1", "a", at);
    expect(rooms.enterLeg("1", "b", at)).toBeUndefined();
    rooms.enterPull("1", "c", at);
    expect(rooms.enterPull("1", "d", at)).toBeUndefined();
    expect(rooms.get("1")).toMatchObject({ leg: "a", pull: "c" });
  });

  test("in which one side never came fail at their time; those that met do not", () => {
    const rooms = new RoomTable<string, string>(1_000);
    rooms.enterLeg("alone", "leg", at);
    rooms.enterLeg("met", "leg", at);
    rooms.enterPull("met", "pull", monoMs(999));
    expect(rooms.nextExpiry()).toBe(1_000);
    expect(rooms.expire(monoMs(1_000)).map((room) => room.key)).toEqual(["alone"]);
    expect(rooms.expire(monoMs(1e9))).toEqual([]);
    expect(rooms.size).toBe(1);
  });

  test("end once: whatever the order of events, one end is reached and nothing after it", () => {
    const event = fc.constantFrom("met", "prefilled", "sent", "failed");
    fc.assert(
      fc.property(fc.array(event, { maxLength: 12 }), (events) => {
        const rooms = new RoomTable<string, string>(1_000);
        rooms.enterLeg("1", "leg", at);
        let ended = false;
        for (const one of events) {
          const before = rooms.size;
          const changed = rooms.apply("1", one);
          expect(changed && ended).toBe(false);
          ended ||= before === 1 && rooms.size === 0;
        }
      }),
    );
  });
});
