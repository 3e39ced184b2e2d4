import { describe, expect, test } from "vitest";
import { requireKnownFlags, serviceCommand, serviceHelp } from "./service-command.ts";

describe("serviceCommand", () => {
  test.each(["router", "worker", "console", "engine"] as const)(
    "%s --help prints its flags and ends with 0",
    async (service) => {
      const out: string[] = [];
      const io = { out: (line: string) => out.push(line), err: () => undefined };
      expect(await serviceCommand(service, ["--config", "x", "--help"], io)).toBe(0);
      expect(out).toEqual([serviceHelp(service)]);
      expect(out[0]?.includes("--processes")).toBe(service === "router");
    },
  );

  test("an unknown flag is refused with the known ones and how to give a setting", () => {
    expect(() => {
      requireKnownFlags("router", ["--port", "3"]);
    }).toThrow(/router: .*--port.*--config, --set.*--set port=value.*--print-config/);
    expect(() => {
      requireKnownFlags("worker", ["--processes", "2"]);
    }).toThrow(/--processes/);
    expect(() => {
      requireKnownFlags("worker", ["--set"]);
    }).toThrow("worker: --set needs a value");
  });

  test("known flags pass, with their value behind them or in them", () => {
    const flags = ["--config=a.yaml", "--set", "--odd=value", "--processes", "2", "--print-config"];
    expect(() => {
      requireKnownFlags("router", flags);
    }).not.toThrow();
  });
});
