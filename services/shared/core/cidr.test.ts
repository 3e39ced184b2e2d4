import { describe, expect, test } from "vitest";
import { inCidrs, parseCidr, type Cidr } from "./cidr.ts";

const ranges = (...texts: string[]): Cidr[] => texts.flatMap((text) => parseCidr(text) ?? []);

describe("parseCidr", () => {
  test.each(["10.0.0.0/8", "127.0.0.1", "::1/128", "fe80::/10", "0.0.0.0/0"])(
    "takes %s",
    (text) => {
      expect(parseCidr(text)?.text).toBe(text);
    },
  );

  test.each([
    "",
    "10.0.0/8",
    "10.0.0.256/8",
    "10.0.0.0/33",
    "::/129",
    "1::2::3",
    "host/8",
    "10.0.0.0/8/8",
  ])("refuses %j", (text) => {
    expect(parseCidr(text)).toBeUndefined();
  });
});

describe("inCidrs", () => {
  test("compares the leading bits only", () => {
    const loopback = ranges("127.0.0.0/8", "::1/128");
    expect(inCidrs(loopback, "127.255.3.4")).toBe(true);
    expect(inCidrs(loopback, "128.0.0.1")).toBe(false);
    expect(inCidrs(loopback, "::1")).toBe(true);
    expect(inCidrs(loopback, "::2")).toBe(false);
  });

  test("sees an IPv4 address inside a mapped IPv6 one", () => {
    expect(inCidrs(ranges("127.0.0.0/8"), "::ffff:127.0.0.1")).toBe(true);
  });

  test("never matches what is no address", () => {
    expect(inCidrs(ranges("0.0.0.0/0", "::/0"), "localhost")).toBe(false);
  });
});
