import { describe, expect, test } from "vitest";
import { decision, topology, workerState } from "../../../test/support/decisions.ts";
import { bar, TopModel } from "./top-view.ts";
import { workersJson, workersView } from "./workers-view.ts";

describe("workersView", () => {
  test("prints pools with policy, workers with their facts, and routers", () => {
    const lines = workersView(topology());
    expect(lines[0]).toBe("pool default  models qwen3-demo  policy kv  14,062 blocks in the index");
    const w0 = lines.find((line) => line.startsWith("w0"))?.split(/ {2,}/);
    expect(w0).toEqual([
      "w0",
      "127.0.0.1:8100",
      "ready",
      "vllm 0.32.0",
      "both",
      "7,031",
      "112,500",
      "16",
      "3",
      "2+1",
      "42.0 %",
      "120 ms",
      "83.0 %",
      "41,200",
      "6.40 ms",
      "8.0 %",
      "0",
      "router-0, router-1",
    ]);
    expect(lines.at(-2)?.split(/ {2,}/)).toEqual(["router-0", "serving", "17", "itself"]);
    expect(lines.at(-1)?.split(/ {2,}/)).toEqual(["router-1", "serving", "18", "210 ms"]);
  });

  test("prints relays where there are some", () => {
    const relay = {
      instance: "relay-0",
      h2Endpoint: "127.0.0.1:9100",
      httpEndpoint: "127.0.0.1:9101",
      state: "attached",
      openRequests: 3,
      engines: ["vllm", "sglang"],
      heldBy: ["router-0"],
    };
    const seen = topology({ relays: [relay, { ...relay, instance: "relay-1", heldBy: [] }] });
    const cells = (name: string): string[] | undefined =>
      workersView(seen)
        .find((line) => line.startsWith(name))
        ?.split(/ {2,}/);
    expect(cells("relay-0")?.slice(1)).toEqual([
      "127.0.0.1:9100",
      "127.0.0.1:9101",
      "attached",
      "3",
      "vllm, sglang",
      "router-0",
    ]);
    expect(cells("relay-1")?.at(-1)).toBe("nobody");
    const model = new TopModel();
    model.topology(seen);
    const screen = model.lines({ columns: 160, rows: 20 }, 0);
    expect(screen).toContain("relays: relay-0 attached, 3 open; relay-1 attached, 3 open");
    expect(workersView(topology()).join("\n")).not.toContain("relay");
  });

  test("says when nobody has joined, and gives JSON without bigints", () => {
    expect(workersView(topology({ pools: [] }))[0]).toBe("no pool: no worker has joined");
    expect(JSON.parse(JSON.stringify(workersJson(topology())))).toMatchObject({
      schema: 1,
      routerInstance: "router-0",
      pools: [{ workers: [{ workerId: "w0", blocks: "7031" }, { workerId: "w1" }] }],
    });
  });
});

describe("TopModel", () => {
  const size = { columns: 160, rows: 20 };

  test("shows workers, the newest decision first, and the rate of the last five seconds", () => {
    const model = new TopModel();
    expect(model.lines(size, 0)).toEqual(["waiting for a router…"]);
    model.topology(topology({ pools: [{ ...topology().pools[0]!, workers: [workerState()] }] }));
    for (let n = 1; n <= 10; n++) model.decided(decision({ id: `router-0.1.${n}` }), 0n, n * 100);
    model.decided(decision({ id: "router-0.1.11" }), 4n, 1_100);
    const lines = model.lines(size, 2_000);
    expect(lines[0]).toContain("2.2 decisions/s");
    expect(lines[0]).toContain("4 not shown");
    const ids = lines
      .filter((line) => /^router-0\.1\./.test(line))
      .map((line) => line.split(" ")[0]);
    expect(ids.slice(0, 2)).toEqual(["router-0.1.11", "router-0.1.10"]);
    expect(model.lines(size, 20_000)[0]).toContain("0.0 decisions/s");
  });

  test("never exceeds the terminal and keeps a bounded number of decisions", () => {
    const model = new TopModel();
    model.topology(topology());
    for (let n = 0; n < 5_000; n++) model.decided(decision({ id: `router-0.1.${n}` }), 0n, n);
    const small = model.lines({ columns: 30, rows: 6 }, 5_000);
    expect(small).toHaveLength(6);
    expect(Math.max(...small.map((line) => line.length))).toBeLessThanOrEqual(30);
    const all = model.lines({ columns: 200, rows: 10_000 }, 5_000);
    expect(all.filter((line) => /^router-0\.1\./.test(line))).toHaveLength(200);
  });
});

test("a bar is full at one, empty at zero and for what is no number", () => {
  expect(bar(0.5, 4)).toBe("██··");
  expect(bar(7, 2)).toBe("██");
  expect(bar(Number.NaN, 2)).toBe("··");
});
