import { expect, test } from "vitest";
import { monoMs } from "../../shared/core/ids.ts";
import { ProxyPresence } from "./proxy-presence.ts";

test("a router that no Envoy has asked lately stops at once", () => {
  const presence = new ProxyPresence(2_500);
  expect(presence.serveMs(monoMs(0))).toBe(0);
  presence.heard(monoMs(1_000));
  expect(presence.serveMs(monoMs(3_501))).toBe(0);
});

test("a call on the hot port, as health checks are, gives Envoy its time", () => {
  const presence = new ProxyPresence(2_500);
  presence.heard(monoMs(1_000));
  expect(presence.serveMs(monoMs(1_000))).toBe(2_500);
  expect(presence.serveMs(monoMs(3_500))).toBe(2_500);
});

test("an open discovery stream does too, however silent, until it ends", () => {
  const presence = new ProxyPresence(2_500);
  presence.discovery(1);
  expect(presence.serveMs(monoMs(1_000_000))).toBe(2_500);
  presence.discovery(0);
  expect(presence.serveMs(monoMs(1_000_000))).toBe(0);
});
