import { describe, expect, test } from "vitest";
import { formatTraceparent, noTracing, parseTraceparent } from "./tracing.ts";

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const spanId = "00f067aa0ba902b7";

describe("parseTraceparent", () => {
  test("reads ids, the sampled flag and the trace state", () => {
    expect(parseTraceparent(`00-${traceId}-${spanId}-01`, "a=b")).toEqual({
      traceId,
      spanId,
      sampled: true,
      traceState: "a=b",
    });
    expect(parseTraceparent(`00-${traceId}-${spanId}-00`)?.sampled).toBe(false);
  });

  test("takes later versions with more parts", () => {
    expect(parseTraceparent(`01-${traceId}-${spanId}-01-more`)?.traceId).toBe(traceId);
  });

  test.each([
    undefined,
    "",
    "garbage",
    `ff-${traceId}-${spanId}-01`,
    `00-${traceId}-${spanId}-01-more`,
    `00-${"0".repeat(32)}-${spanId}-01`,
    `00-${traceId}-${"0".repeat(16)}-01`,
    `00-${traceId.toUpperCase()}-${spanId}-01`,
  ])("refuses %j", (text) => {
    expect(parseTraceparent(text)).toBeUndefined();
  });

  test("is the inverse of formatTraceparent", () => {
    const context = { traceId, spanId, sampled: true };
    expect(parseTraceparent(formatTraceparent(context))).toEqual(context);
  });
});

test("without an endpoint no span object is made", async () => {
  expect(noTracing.start("kvmesh.route")).toBeUndefined();
  await noTracing.stop();
});
