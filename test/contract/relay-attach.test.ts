import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import { relayProofMessage } from "../../services/shared/core/placement-token/relay-proof.ts";
import {
  LegOutcome,
  type Engine,
  type RelayHello,
} from "../../services/shared/gen/kvmesh/relay/v1/relay.ts";
import { startScriptedEngine, type ScriptedEngine } from "../support/relay-engines.ts";
import { ScriptedRouter, type Said, type Stream } from "../support/relay-router.ts";
import {
  legAt,
  post,
  readStream,
  startTestRelay,
  type TestRelay,
} from "../support/relay-requests.ts";

const open: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

async function start(): Promise<{
  router: ScriptedRouter;
  relay: TestRelay;
  one: ScriptedEngine;
  two: ScriptedEngine;
  stream: Stream;
}> {
  const router = new ScriptedRouter();
  await router.start();
  const relay = await startTestRelay({
    settings: { routers: { list: [`127.0.0.1:${String(router.port)}`] } },
  });
  const one = await startScriptedEngine();
  const two = await startScriptedEngine();
  open.push(router, one, two, { close: () => relay.stop() });
  await expect.poll(() => router.said.some(({ $case }) => $case === "load")).toBe(true);
  const [stream] = router.streams;
  if (stream === undefined) throw new Error("no stream");
  return { router, relay, one, two, stream };
}

const engineOf = ({ address }: ScriptedEngine, over: Partial<Engine> = {}): Engine => ({
  workerId: `w-${address}`,
  address,
  workerStartMs: 1n,
  engineLife: 1n,
  engine: "vllm",
  ready: true,
  ...over,
});
const body = JSON.stringify({ model: "m", prompt: "hello", max_tokens: 20, stream: true });

function send(relay: TestRelay, engine: ScriptedEngine): ReturnType<typeof post> {
  const token = relay.sign(body, { legs: [legAt(engine.address, "whole")] });
  return post(relay.relay.httpPort, "/v1/completions", body, { "x-kvmesh-placement": token });
}

describe("Relays/Attach", () => {
  test("a relay proves itself, tells its addresses and load, and says goodbye", async () => {
    const { router, relay } = await start();
    const hello = router.said[0]?.value as RelayHello;
    expect(router.said[0]?.$case).toBe("hello");
    const keys = JSON.parse(readFileSync(relay.keysFile, "utf8")) as {
      join: { id: string; key: string }[];
    };
    const expected = createHmac("sha256", Buffer.from(keys.join[0]?.key ?? "", "hex"))
      .update(
        relayProofMessage({
          relay: hello.instance,
          epoch: Number(hello.epoch),
          h2Address: hello.h2Address,
          httpAddress: hello.httpAddress,
          nonce: Buffer.alloc(16, 7),
        }),
      )
      .digest();
    expect(Buffer.from(hello.proof)).toEqual(expected);
    expect(hello.h2Address).toBe(`127.0.0.1:${String(relay.relay.h2Port)}`);
    await relay.relay.stop("test");
    expect(router.said[router.said.length - 1]?.$case).toBe("goodbye");
  });

  test("engines that are no members, or in another life, get no leg", async () => {
    const { router, relay, one, two, stream } = await start();
    expect((await send(relay, one)).status).toBe(200);
    router.snapshot(stream, [engineOf(one), engineOf(two, { engineLife: 2n })]);
    await expect.poll(async () => (await send(relay, two)).status).toBe(409);
    expect((await send(relay, one)).status).toBe(200);
    router.send(stream, {
      $case: "delta",
      value: {
        seq: 6n,
        engines: [engineOf(two)],
        removedEngines: [`w-${one.address}`],
        relays: [],
        removedRelays: [],
      },
    });
    await expect.poll(async () => (await send(relay, one)).status).toBe(409);
    expect((await send(relay, two)).status).toBe(200);
  });

  test("a gap and a wrong count ask for the snapshot again; what was known stays in use", async () => {
    const { router, relay, one, two, stream } = await start();
    const resyncs = (): Said[] => router.said.filter(({ $case }) => $case === "resync");
    router.snapshot(stream, [engineOf(one)]);
    const delta = { engines: [engineOf(two)], removedEngines: [], relays: [], removedRelays: [] };
    router.send(stream, { $case: "delta", value: { seq: 8n, ...delta } });
    await expect.poll(resyncs).toEqual([{ $case: "resync", value: { expectedSeq: 6n } }]);
    expect((await send(relay, one)).status).toBe(200);
    router.snapshot(stream, [engineOf(two)], { engineCount: 2 });
    await expect.poll(() => resyncs().length).toBe(2);
    router.snapshot(stream, [engineOf(two)], { baseSeq: 9n });
    await expect.poll(async () => (await send(relay, two)).status).toBe(200);
    expect((await send(relay, one)).status).toBe(409);
  });

  test("leg notices are numbered, and come again after a break until they are acknowledged", async () => {
    const { router, relay, one, stream } = await start();
    router.acksLegs = false;
    expect((await send(relay, one)).status).toBe(200);
    await expect.poll(() => router.legs().length).toBe(2);
    expect(router.legs()).toMatchObject([
      { seq: 1n, ended: false },
      { seq: 2n, ended: true, last: true, outcome: LegOutcome.LEG_OUTCOME_DONE, status: 200 },
    ]);
    router.acksLegs = true;
    stream.end();
    await expect.poll(() => router.legs().map(({ seq }) => seq)).toEqual([1n, 2n, 1n, 2n]);
    router.streams[1]?.end();
    await expect.poll(() => router.streams.length).toBe(3);
    expect((await send(relay, one)).status).toBe(200);
    await expect.poll(() => router.legs().map(({ seq }) => seq)).toEqual([1n, 2n, 1n, 2n, 3n, 4n]);
  });

  test("a request whose engine is lost before its first byte is placed again", async () => {
    const { router, relay, one, two } = await start();
    one.kill();
    expect((await send(relay, one)).status).toBe(502);
    router.token = relay.sign(body, { legs: [legAt(two.address, "whole")] });
    const answer = await send(relay, one);
    expect(readStream(answer.text).done).toBe(true);
    expect(router.asked[1]).toMatchObject({ excludedWorkerIds: [`w-${one.address}`] });
    expect(
      Buffer.from(
        router.asked[1]?.prompt?.$case === "body" ? router.asked[1].prompt.value.json : "",
      ).toString(),
    ).toBe(body);
  });

  test("an order to drain shuts the relay to new requests, not to open ones", async () => {
    const { router, relay, one, stream } = await start();
    one.faults = { tokenMs: 20 };
    const running = send(relay, one);
    await expect.poll(() => one.seen.length).toBe(1);
    router.send(stream, {
      $case: "drain",
      value: { workerId: "", deadlineMs: 5_000, reason: "test" },
    });
    await expect.poll(async () => (await send(relay, one)).status).toBe(503);
    await expect
      .poll(() => router.said.some((one) => one.$case === "load" && one.value.draining))
      .toBe(true);
    expect(readStream((await running).text).done).toBe(true);
  });
});
