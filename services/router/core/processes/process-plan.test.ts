import { describe, expect, test } from "vitest";
import { planProcesses } from "./process-plan.ts";

const options = {
  instance: "node-a",
  host: "127.0.0.1",
  hotPort: 9002,
  controlPort: 9003,
  httpPort: 9004,
  peers: ["10.0.0.2:9003"],
  processes: 3,
};

describe("planProcesses", () => {
  test("gives each process a name, ports and all others as peers", () => {
    expect(planProcesses(options)).toEqual([
      {
        instance: "node-a-0",
        hotPort: 9002,
        controlPort: 9003,
        httpPort: 9004,
        peers: ["127.0.0.1:9013", "127.0.0.1:9023", "10.0.0.2:9003"],
      },
      {
        instance: "node-a-1",
        hotPort: 9012,
        controlPort: 9013,
        httpPort: 9014,
        peers: ["127.0.0.1:9003", "127.0.0.1:9023", "10.0.0.2:9003"],
      },
      {
        instance: "node-a-2",
        hotPort: 9022,
        controlPort: 9023,
        httpPort: 9024,
        peers: ["127.0.0.1:9003", "127.0.0.1:9013", "10.0.0.2:9003"],
      },
    ]);
  });

  test.each([
    ["0.0.0.0", "127.0.0.1:9013"],
    ["::", "[::1]:9013"],
    ["fd00::7", "[fd00::7]:9013"],
    ["10.1.2.3", "10.1.2.3:9013"],
  ])("names peers on %s by an address that leads to them", (host, peer) => {
    expect(planProcesses({ ...options, host })[0]?.peers[0]).toBe(peer);
  });
});
