import { createServer, type Server } from "node:http";
import { once } from "node:events";
import { afterEach, describe, expect, test } from "vitest";
import { engineTrouble } from "./engine-check.ts";
import { freePorts } from "./up/port-check.ts";

const servers: Server[] = [];

afterEach(() => {
  for (const server of servers.splice(0)) server.close();
});

async function engine(answers: Readonly<Record<string, string>>): Promise<string> {
  const server = createServer((incoming, response) => {
    const text = answers[incoming.url ?? ""];
    response.writeHead(text === undefined ? 404 : 200).end(text);
  }).listen(0, "127.0.0.1");
  servers.push(server);
  await once(server, "listening");
  const address = server.address();
  return `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`;
}

const cacheInfo = (tokens: number): string => `vllm:cache_config_info{block_size="${tokens}"} 1\n`;

describe("engineTrouble", () => {
  test("says that nothing listens", async () => {
    const [port = 0] = await freePorts("127.0.0.1", 1, Math.random);
    expect(await engineTrouble(`http://127.0.0.1:${port}`, 32)).toBe("connection refused");
  });

  test("names the path that something else than an engine does not have", async () => {
    expect(await engineTrouble(await engine({}), 32)).toBe("GET /health answers 404");
    expect(await engineTrouble(await engine({ "/health": "" }), 32)).toBe(
      "GET /metrics answers 404",
    );
  });

  test("says that block sizes do not fit", async () => {
    const url = await engine({ "/health": "", "/metrics": cacheInfo(48), "/v1/models": "{}" });
    expect(await engineTrouble(url, 32)).toMatch(/blocks of 48 tokens, which do not divide .* 32/);
    expect(await engineTrouble(`${url}/`, 96)).toBeUndefined();
  });
});
