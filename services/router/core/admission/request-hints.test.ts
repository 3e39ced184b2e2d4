import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, test } from "vitest";
import { classFor, readHints } from "./request-hints.ts";

const read = (headers: Record<string, string>, session?: string) =>
  readHints((name) => headers[name], session === undefined ? undefined : { session });

describe("readHints", () => {
  test("reads our names, llm-d's and its older ones, ours first", () => {
    expect(
      read({
        "x-kvmesh-tenant": "us",
        "x-llm-d-inference-fairness-id": "them",
        "x-gateway-inference-objective": "gold",
        "x-slo-ttft-ms": "900",
        "x-llm-d-slo-tpot-ms": "12.5",
        "x-session-id": "s1",
      }),
    ).toEqual({ tenant: "us", priority: "gold", session: "s1", ttftMs: 900, itlMs: 12.5 });
  });

  test("takes the body's session when no header names one", () => {
    expect(read({}, "u1").session).toBe("u1");
    expect(read({ "x-kvmesh-session": "h" }, "u1").session).toBe("h");
    expect(read({}).session).toBe("");
  });

  test.each(["", "0", "-5", "fast", "1e3", "999999999", "NaN", "5 ms"])(
    "takes %j for no time at all",
    (text) => {
      expect(read({ "x-kvmesh-slo-ttft-ms": text }).ttftMs).toBeUndefined();
    },
  );

  test("cuts names that are too long", () => {
    expect(read({ "x-kvmesh-tenant": "t".repeat(10_000) }).tenant).toHaveLength(128);
  });

  test("keeps nothing of the text that a name was cut from", () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const heapUsed = (): number => {
      collect();
      return process.memoryUsage().heapUsed;
    };
    const before = heapUsed();
    const kept: string[] = [];
    for (let i = 0; i < 400; i++) {
      // A text of its own, as the parser of a body makes it.
      const text = Buffer.alloc(100_000, `user ${i} `).toString("latin1");
      kept.push(read({}, text).session, read({ "x-kvmesh-tenant": text }).tenant);
    }
    const keptBytes = heapUsed() - before;
    expect(new Set(kept).size).toBe(400);
    expect(keptBytes).toBeLessThan(5_000_000);
  });
});

describe("classFor", () => {
  const classes = [
    { name: "batch", priority: -10 },
    { name: "chat", priority: 0 },
    { name: "gold", priority: 50 },
  ];
  test.each([
    ["gold", "gold"],
    ["50", "gold"],
    ["49", "chat"],
    ["1000000", "gold"],
    ["-1", "batch"],
    ["-99", "batch"],
    ["platinum", undefined],
    ["", undefined],
    ["1.5", undefined],
  ])("%j means %j", (priority, name) => {
    expect(classFor(classes, priority)).toBe(name);
  });
});
