import { EventEmitter } from "node:events";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { MeshError } from "../../shared/core/errors.ts";
import { LeaseStreams, type Lease, type LeaseHolder } from "./lease-streams.ts";

/** The other side of a stream, as grpc-js shows it to a server. */
class Call extends EventEmitter {
  readonly sent: string[] = [];
  readonly errors: { readonly code: number; readonly details: string }[] = [];
  isSlow = false;
  isEnded = false;

  constructor() {
    super();
    this.on("error", (error: { code: number; details: string }) => this.errors.push(error));
  }

  write(message: string): boolean {
    this.sent.push(message);
    return !this.isSlow;
  }

  end(): void {
    this.isEnded = true;
  }
}

class Holder implements LeaseHolder<string> {
  readonly lease: Lease<string>;
  readonly heard: string[] = [];
  goneCount = 0;
  drainedCount = 0;

  constructor(lease: Lease<string>) {
    this.lease = lease;
    lease.send("challenge");
  }

  receive(request: string): void {
    if (request === "bad") throw new MeshError("invalid_request", "that is bad");
    this.heard.push(request);
    if (request === "hello") this.lease.accepted();
  }

  gone(): void {
    this.goneCount++;
  }

  drained(): void {
    this.drainedCount++;
  }
}

let streams: LeaseStreams<string, string, Holder>;
let refused: string[];
let settled: number;

beforeEach(() => {
  vi.useFakeTimers();
  refused = [];
  settled = 0;
  streams = new LeaseStreams<string, string, Holder>(
    {
      streamsMax: 2,
      ofWhom: "testers",
      onRefused: ({ code }, holder) => refused.push(`${code}/${holder?.heard.length ?? "none"}`),
      settle: () => {
        settled++;
      },
    },
    (lease) => new Holder(lease),
  );
});

afterEach(() => {
  vi.useRealTimers();
});

function open(): { readonly call: Call; readonly holder: Holder } {
  const call = new Call();
  const before = new Set(streams.holders());
  streams.accept(call as unknown as ServerDuplexStream<string, string>);
  const holder = [...streams.holders()].find((one) => !before.has(one));
  if (holder === undefined) throw new Error("no stream was taken");
  return { call, holder };
}

test("ends a stream that does not say hello in time, and none that did", () => {
  const silent = open();
  const spoken = open();
  spoken.call.emit("data", "hello");
  vi.advanceTimersByTime(6_000);
  expect(silent.call.errors).toMatchObject([{ details: "no hello within 5000 ms" }]);
  expect([silent.holder.goneCount, spoken.holder.goneCount]).toEqual([1, 0]);
  expect([...streams.holders()]).toEqual([spoken.holder]);
  expect(refused).toEqual(["deadline_exceeded/0"]);
});

test("is over once, whatever ends it and whatever follows", () => {
  for (const end of ["end", "cancelled", "error", "refuse", "bad"]) {
    const { call, holder } = open();
    call.emit("data", "hello");
    if (end === "refuse") holder.lease.refuse(new MeshError("stale_epoch", "too old"));
    else if (end === "bad") call.emit("data", "bad");
    else call.emit(end, { code: 1, details: "" });
    call.emit("end");
    call.emit("cancelled");
    call.emit("data", "late");
    holder.lease.send("late");
    expect([end, holder.goneCount, holder.heard, call.sent]).toEqual([
      end,
      1,
      ["hello"],
      ["challenge"],
    ]);
    expect([...streams.holders()]).toEqual([]);
  }
  expect(refused).toEqual(["stale_epoch/1", "invalid_request/1"]);
});

test("refuses streams beyond the maximum, and takes one again when another is over", () => {
  const first = open();
  open();
  const call = new Call();
  streams.accept(call as unknown as ServerDuplexStream<string, string>);
  expect(call.errors).toMatchObject([{ details: "2 streams of testers are open, the maximum" }]);
  expect([call.sent, refused]).toEqual([[], ["overloaded/none"]]);
  first.call.emit("cancelled");
  open();
});

test("ends the stream that a newer one replaces, and all when told to", () => {
  const old = open();
  const young = open();
  streams.replace(old.holder.lease.id, "tester");
  expect(old.call.errors).toMatchObject([{ details: "a newer stream of this tester took over" }]);
  streams.close();
  expect([young.call.errors, young.call.isEnded, young.holder.goneCount]).toEqual([[], true, 1]);
});

test("knows a slow reader until it reads again, and settles after each message", () => {
  const { call, holder } = open();
  call.isSlow = true;
  holder.lease.send("much");
  expect(holder.lease.isBlocked).toBe(true);
  call.emit("drain");
  expect([holder.lease.isBlocked, holder.drainedCount]).toEqual([false, 1]);
  const before = settled;
  call.emit("data", "hello");
  expect(settled).toBe(before + 1);
});
