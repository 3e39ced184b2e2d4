import { expect, test } from "vitest";
import { createView, LiveTopology, type RouterView } from "./live-topology.ts";

function viewOf(...relays: readonly string[]): RouterView {
  const view = createView();
  for (const instance of relays) {
    view.relays.set(instance, { instance, h2Address: "127.0.0.1:1", epoch: 1 });
  }
  return view;
}

const names = (topology: LiveTopology): string[] =>
  topology.relays().map(({ instance }) => instance);

test("the last router's view stays until another router tells its own", () => {
  const topology = new LiveTopology();
  topology.set("r0", viewOf("a", "b"));
  topology.drop("r0");
  expect(names(topology)).toEqual(["a", "b"]);
  topology.set("r1", viewOf("b"));
  expect(names(topology)).toEqual(["b"]);
  expect(topology.routerCount).toBe(1);
});

test("a router that comes back is not forgotten for having been gone", () => {
  const topology = new LiveTopology();
  topology.set("r0", viewOf("a"));
  topology.drop("r0");
  topology.set("r0", viewOf("c"));
  topology.set("r1", viewOf("b"));
  expect(names(topology)).toEqual(["b", "c"]);
  topology.drop("r0");
  expect(names(topology)).toEqual(["b"]);
});
