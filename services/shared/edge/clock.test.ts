import { afterEach, expect, test, vi } from "vitest";
import { realClock } from "./clock.ts";

afterEach(() => {
  vi.useRealTimers();
});

test("the wall clock follows corrections of the machine's clock; intervals do not", () => {
  const before = realClock.wallUnixUs();
  const from = realClock.now();
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 3_600_000 });
  expect(realClock.wallUnixUs() - before).toBeGreaterThanOrEqual(3_599_000_000);
  expect(realClock.now() - from).toBeLessThan(60_000);
});
