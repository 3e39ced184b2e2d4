import { expect, test } from "vitest";
import { parseEndpoint } from "./endpoint.ts";

test("splits IPv4, IPv6 and host names", () => {
  expect(parseEndpoint("127.0.0.1:8100")).toEqual({ host: "127.0.0.1", port: 8100 });
  expect(parseEndpoint("[::1]:1")).toEqual({ host: "::1", port: 1 });
  expect(parseEndpoint("engine.local:65535")).toEqual({ host: "engine.local", port: 65_535 });
});

test.each(["", "127.0.0.1", ":80", "::1:80", "a:0", "a:65536", "a b:80", "a:80 "])(
  "refuses %j",
  (text) => {
    expect(parseEndpoint(text)).toBeUndefined();
  },
);
