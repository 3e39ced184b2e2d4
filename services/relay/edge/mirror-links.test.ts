import { createHmac } from "node:crypto";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { MirrorStore } from "../core/resume/mirror-store.ts";
import { createView, LiveTopology } from "../core/topology/live-topology.ts";
import { MirrorLinks } from "./mirror-links.ts";

const key: TokenKey = {
  id: "j1",
  mac: (message) => createHmac("sha256", "secret").update(message).digest(),
};
const digest = new Uint8Array(32);
let topology: LiveTopology;
let links: MirrorLinks;

function buddyAt(...addresses: string[]): void {
  const view = createView();
  for (const h2Address of addresses) {
    view.relays.set("relay-1", { instance: "relay-1", h2Address, epoch: 1 });
  }
  topology.set("r0", view);
}

beforeEach(() => {
  topology = new LiveTopology();
  links = new MirrorLinks({
    instance: "relay-0",
    epoch: 1,
    joinKey: key,
    resumeKey: key,
    topology,
    store: new MirrorStore({ streamBytesMax: 4_096, bytesMax: 20_000, keepMs: 1_000 }),
    clock: realClock,
  });
});

afterEach(() => {
  links.stop();
});

test("streams of a buddy that came back at another address leave its old link closed", () => {
  buddyAt("127.0.0.1:1");
  const old = links.open(digest);
  buddyAt("127.0.0.1:2");
  expect(links.open(digest)?.buddy).toBe("relay-1");
  expect(() => {
    old?.grew();
    old?.ended(false);
  }).not.toThrow();
});

test("a link to a relay that is gone is let go of once no stream uses it", async () => {
  links.start();
  buddyAt("127.0.0.1:1");
  const mirror = links.open(digest);
  buddyAt();
  await new Promise((resolve) => setTimeout(resolve, 1_200));
  expect(links.size).toBe(1);
  mirror?.ended(true);
  await expect.poll(() => links.size, { timeout: 3_000 }).toBe(0);
});
