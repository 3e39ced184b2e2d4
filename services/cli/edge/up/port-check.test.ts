import { createServer, type Server } from "node:net";
import { once } from "node:events";
import { afterEach, describe, expect, test } from "vitest";
import { checkPorts, freePorts, portProblemText, type WantedPort } from "./port-check.ts";

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

test("freePorts gives different ports outside the range of outgoing connections", async () => {
  const ports = await freePorts("127.0.0.1", 40, Math.random);
  expect(new Set(ports).size).toBe(40);
  expect(ports.every((port) => port >= 20_000 && port < 32_000)).toBe(true);
});
