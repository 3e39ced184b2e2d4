import { EventEmitter } from "node:events";
import type { ServerWritableStream } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import type { Clock } from "../../shared/core/clock.ts";
import { monoMs } from "../../shared/core/ids.ts";
import type {
  WatchPlacementsRequest,
  WatchPlacementsResponse,
  WatchTopologyRequest,
  WatchTopologyResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { memberFacts, placeInput, routerCore } from "../../../test/support/router-builders.ts";
import { PlacementWatchers, TopologyWatchers, watchersMax } from "./watchers.ts";

/** A reader whose buffer is full when the test says so. */
class FakeCall<Request, Response> extends EventEmitter {
  readonly written: Response[] = [];
  readonly request: Request;
  hasRoom = true;
  ended = false;

  constructor(request: Request) {
    super();
    this.request = request;
  }

  write(message: Response): boolean {
    this.written.push(message);
    return this.hasRoom;
  }

  end(): void {
    this.ended = true;
  }

  get stream(): ServerWritableStream<Request, Response> {
    return this as unknown as ServerWritableStream<Request, Response>;
  }
}

let nowMs = 0;
const clock: Clock = {
  now: () => monoMs(nowMs),
  wallUnixUs: () => nowMs * 1_000,
  sleep: () => Promise.resolve(),
};

const decision = (() => {
  const core = routerCore();
  core.admit(memberFacts(0), 1, monoMs(0));
  return core.place(placeInput(), monoMs(0));
})();

function placements(maxPerSecond = 0) {
  nowMs = 0;
  let skipped = 0;
  const watchers = new PlacementWatchers({
    clock,
    onSkipped: () => {
      skipped++;
    },
  });
  const call = new FakeCall<WatchPlacementsRequest, WatchPlacementsResponse>({ maxPerSecond });
  watchers.add(call.stream);
  return { watchers, call, skipped: () => skipped };
}

test("a modest reader gets its rate and is told with the next decision how many it missed", () => {
  const { watchers, call, skipped } = placements(2);
  for (let i = 0; i < 7; i++) watchers.publish(decision);
  expect(call.written.map((one) => one.skipped)).toEqual([0n, 0n]);
  expect(skipped()).toBe(5);
  nowMs = 1_000;
  watchers.publish(decision);
  watchers.publish(decision);
  expect(call.written.map((one) => one.skipped)).toEqual([0n, 0n, 5n, 0n]);
});

test("a slow reader holds one message back, never a queue, and goes on when it has room", () => {
  const { watchers, call, skipped } = placements(1_000);
  call.hasRoom = false;
  for (let i = 0; i < 100; i++) watchers.publish(decision);
  expect(call.written).toHaveLength(1);
  expect(skipped()).toBe(99);
  call.hasRoom = true;
  call.emit("drain");
  watchers.publish(decision);
  expect(call.written.at(-1)?.skipped).toBe(99n);
});

test("one slow reader takes nothing from another", () => {
  const { watchers, call } = placements(1_000);
  const quick = new FakeCall<WatchPlacementsRequest, WatchPlacementsResponse>({ maxPerSecond: 0 });
  watchers.add(quick.stream);
  call.hasRoom = false;
  for (let i = 0; i < 10; i++) watchers.publish(decision);
  expect(call.written).toHaveLength(1);
  expect(quick.written).toHaveLength(10);
});

test.each(["cancelled", "error", "close"])("a reader that ends by %s frees its place", (event) => {
  const { watchers } = placements();
  const calls = Array.from(
    { length: watchersMax - 1 },
    () => new FakeCall<WatchPlacementsRequest, WatchPlacementsResponse>({ maxPerSecond: 0 }),
  );
  for (const call of calls) watchers.add(call.stream);
  expect(watchers.full).toBe(true);
  calls[0]?.emit(event, new Error("gone"));
  expect(watchers.full).toBe(false);
  watchers.publish(decision);
  expect(calls[0]?.written).toEqual([]);
  watchers.close();
  expect(calls[1]?.ended).toBe(true);
});

const topologyNow: WatchTopologyResponse = { pools: [], routers: [], instance: "r0" } as never;

function topology(intervalMsMin = 0) {
  nowMs = 0;
  let reads = 0;
  const watchers = new TopologyWatchers({
    clock,
    read: () => {
      reads++;
      return topologyNow;
    },
  });
  const call = new FakeCall<WatchTopologyRequest, WatchTopologyResponse>({ intervalMsMin });
  watchers.add(call.stream);
  return { watchers, call, reads: () => reads };
}

test("topology comes at once, after a change no sooner than the interval, and every 2 s", () => {
  const { watchers, call } = topology();
  expect(call.written).toHaveLength(1);
  nowMs = 300;
  watchers.tick();
  expect(call.written).toHaveLength(1);
  watchers.changed();
  watchers.tick();
  expect(call.written).toHaveLength(2);
  nowMs = 2_299;
  watchers.tick();
  expect(call.written).toHaveLength(2);
  nowMs = 2_300;
  watchers.tick();
  expect(call.written).toHaveLength(3);
});

test("a change that comes too soon for a reader is not lost on it", () => {
  const { watchers, call } = topology(1_000);
  nowMs = 500;
  watchers.changed();
  watchers.tick();
  expect(call.written).toHaveLength(1);
  nowMs = 1_000;
  watchers.tick();
  expect(call.written).toHaveLength(2);
});

test("a slow reader of the topology gets the newest when it has room, and the topology is read once for all", () => {
  const { watchers, call, reads } = topology();
  const others = Array.from(
    { length: 5 },
    () => new FakeCall<WatchTopologyRequest, WatchTopologyResponse>({ intervalMsMin: 0 }),
  );
  for (const other of others) watchers.add(other.stream);
  const before = reads();
  call.hasRoom = false;
  for (nowMs = 300; nowMs <= 3_000; nowMs += 300) {
    watchers.changed();
    watchers.tick();
  }
  expect(reads() - before).toBe(10);
  expect(call.written).toHaveLength(2);
  expect(others[0]?.written).toHaveLength(11);
  call.emit("drain");
  watchers.changed();
  watchers.tick();
  expect(call.written).toHaveLength(3);
});
