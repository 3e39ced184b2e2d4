import { createServer, type Server } from "node:net";
import { once } from "node:events";
import { afterEach, describe, expect, test } from "vitest";
import {
  checkPorts,
  freePorts,
  portProblemsText,
  portProblemText,
  type WantedPort,
} from "./port-check.ts";

const servers: Server[] = [];

afterEach(() => {
  for (const server of servers.splice(0)) server.close();
});

async function takenPort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  servers.push(server);
  await once(server, "listening");
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}

const wanted = (port: number, process: string): WantedPort => ({
  host: "127.0.0.1",
  port,
  process,
  setting: `mesh.ports.${process}`,
});

describe("checkPorts", () => {
  test("names port, holder and setting of everything that is taken, at once", async () => {
    const [first, second] = [await takenPort(), await takenPort()];
    const [free] = await freePorts("127.0.0.1", 1, () => 0.3);
    const problems = await checkPorts([
      wanted(first, "a"),
      wanted(free ?? 0, "b"),
      wanted(second, "c"),
      wanted(0, "d"),
    ]);
    expect(problems.map((one) => one.wanted.process).toSorted()).toEqual(["a", "c"]);
    const text = portProblemText(problems[0] ?? { wanted: wanted(0, ""), code: "" });
    expect(text).toContain(`port ${problems[0]?.wanted.port ?? 0} for`);
    expect(text).toContain("is in use by");
    expect(text).toContain(`pid ${process.pid}`);
    expect(text).toMatch(/change mesh\.ports\.[ac], or use --ports-base/);
  });

  test("finds two of ours that want one port", async () => {
    const [free] = await freePorts("127.0.0.1", 1, () => 0.6);
    const problems = await checkPorts([wanted(free ?? 0, "a"), wanted(free ?? 0, "b")]);
    expect(problems).toMatchObject([{ code: "duplicate", holder: "a (mesh.ports.a)" }]);
  });
});

describe("portProblemsText", () => {
  const inUse = (port: number, holder: string) => ({
    wanted: wanted(port, `p${port}`),
    code: "EADDRINUSE",
    holder,
  });

  test("describes few ports one by one", () => {
    const problems = [inUse(8080, "nginx, pid 7"), inUse(9002, "node, pid 9")];
    const lines = portProblemsText(problems, 20).split("\n");
    expect(lines).toHaveLength(2);
    expect(lines[1]).toContain("port 9002 for p9002 is in use by node, pid 9; change mesh.ports");
  });

  test("sums many up by who holds them, and says once what to do", () => {
    const problems = [
      inUse(8080, "envoy, pid 7"),
      inUse(8081, "envoy, pid 7"),
      inUse(9002, "node, pid 9"),
      inUse(9003, "node, pid 9"),
    ];
    expect(portProblemsText(problems, 20).split("\n")).toEqual([
      "4 of 20 ports cannot be had:",
      "  envoy, pid 7: 8080, 8081",
      "  node, pid 9: 9002, 9003",
      expect.stringContaining("--ports-base all-free"),
    ]);
  });

  test("names at most six holders", () => {
    const problems = Array.from({ length: 9 }, (_, at) => inUse(9_000 + at, `node, pid ${at}`));
    expect(portProblemsText(problems, 9)).toContain("  and 3 more\n");
  });
});

test("freePorts gives different ports outside the range of outgoing connections", async () => {
  const ports = await freePorts("127.0.0.1", 40, Math.random);
  expect(new Set(ports).size).toBe(40);
  expect(ports.every((port) => port >= 20_000 && port < 32_000)).toBe(true);
});
