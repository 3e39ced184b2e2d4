import { connect, type ClientHttp2Session, type IncomingHttpHeaders } from "node:http2";
import { afterEach, describe, expect, test } from "vitest";
import { startScriptedEngine, type ScriptedEngine } from "../support/relay-engines.ts";
import { legAt, readStream, startTestRelay, type TestRelay } from "../support/relay-requests.ts";

interface Mesh {
  readonly relay: TestRelay;
  readonly prefill: ScriptedEngine;
  readonly decode: ScriptedEngine;
  readonly session: ClientHttp2Session;
}

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

async function start(settings: Record<string, unknown> = {}): Promise<Mesh> {
  const prefill = await startScriptedEngine();
  const decode = await startScriptedEngine({ peers: () => [prefill] });
  const relay = await startTestRelay({ settings });
  const session = connect(`http://127.0.0.1:${String(relay.relay.h2Port)}`);
  open.push(prefill, decode, { close: () => relay.stop() }, { close: () => session.destroy() });
  return { relay, prefill, decode, session };
}

interface H2Answer {
  readonly headers: IncomingHttpHeaders & { ":status"?: number | undefined };
  readonly trailers: IncomingHttpHeaders;
  readonly text: string;
  readonly code: number;
}

function post(mesh: Mesh, body: string, leaveAfter = Infinity): Promise<H2Answer> {
  const { relay, prefill, decode, session } = mesh;
  const legs = [legAt(prefill.address, "prefill"), legAt(decode.address, "decode")];
  const stream = session.request({
    ":method": "POST",
    ":path": "/v1/completions",
    "content-type": "application/json",
    "x-kvmesh-placement": relay.sign(body, { legs }),
  });
  return new Promise((resolve) => {
    const parts: Buffer[] = [];
    let headers: H2Answer["headers"] = {};
    let trailers: IncomingHttpHeaders = {};
    stream.on("response", (got) => (headers = got));
    stream.on("trailers", (got) => (trailers = got));
    stream.on("data", (part: Buffer) => {
      parts.push(part);
      if (parts.length >= leaveAfter) stream.close(8);
    });
    stream.on("error", () => undefined);
    stream.on("close", () => {
      resolve({ headers, trailers, text: Buffer.concat(parts).toString(), code: stream.rstCode });
    });
    stream.end(body);
  });
}

const bodyOf = (over: Record<string, unknown> = {}): string =>
  JSON.stringify({ model: "m", prompt: "hello", max_tokens: 30, stream: true, ...over });

describe("HTTP/2", () => {
  test("many streams of one connection pass, and end with a trailer", async () => {
    const mesh = await start();
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, i) => post(mesh, bodyOf({ prompt: `p${String(i)}` }))),
    );
    for (const answer of answers) {
      expect(answer.headers[":status"]).toBe(200);
      expect(answer.trailers["x-kvmesh-outcome"]).toBe("done");
      expect(readStream(answer.text).done).toBe(true);
    }
  });

  test("large bodies come in many frames; too large ones are refused", async () => {
    const mesh = await start({ limits: { bodyBytesMax: 1_000_000 } });
    const large = await post(mesh, bodyOf({ prompt: "x".repeat(900_000), max_tokens: 3 }));
    expect(readStream(large.text).done).toBe(true);
    const tooLarge = await post(mesh, bodyOf({ prompt: "x".repeat(1_100_000) }));
    expect(tooLarge.headers[":status"]).toBe(413);
    expect(tooLarge.text).toContain("relay.limits.bodyBytesMax");
  });

  test("a stream that the client resets stops its engine", async () => {
    const mesh = await start();
    mesh.decode.faults = { tokenMs: 10 };
    await post(mesh, bodyOf({ max_tokens: 500 }), 2);
    await expect.poll(() => mesh.decode.seen[0]?.abortedAt ?? 0).toBeGreaterThan(0);
    await expect.poll(() => mesh.relay.relay.openRequests).toBe(0);
  });

  test("errors are in the OpenAI shape", async () => {
    const mesh = await start();
    const stream = mesh.session.request({ ":method": "POST", ":path": "/v1/completions" });
    stream.end("{}");
    const status = await new Promise((resolve) => {
      stream.on("response", (headers) => {
        resolve(headers[":status"]);
      });
    });
    let text = "";
    for await (const part of stream) text += String(part);
    expect(status).toBe(401);
    expect(JSON.parse(text)).toMatchObject({ error: { code: "unauthenticated" } });
  });

  test("a connection that drops ends all of its streams at the engines", async () => {
    const mesh = await start();
    mesh.decode.faults = { tokenMs: 10 };
    const all = [1, 2, 3].map(() => post(mesh, bodyOf({ max_tokens: 500 })));
    await expect.poll(() => mesh.decode.seen.length).toBe(3);
    mesh.session.destroy();
    await Promise.all(all);
    await expect.poll(() => mesh.decode.seen.every(({ abortedAt }) => abortedAt > 0)).toBe(true);
  });

  test("a draining relay says so, lets streams end and takes no more", async () => {
    const mesh = await start({ drainMsMax: 10_000 });
    mesh.decode.faults = { tokenMs: 15 };
    const running = post(mesh, bodyOf({ max_tokens: 20, ignore_eos: true }));
    await expect.poll(() => mesh.decode.seen.length).toBe(1);
    const stopped = mesh.relay.relay.stop("test");
    const refused = await post(mesh, bodyOf());
    expect(refused.headers[":status"]).toBe(503);
    expect(refused.headers["retry-after-ms"]).toBe("100");
    expect(readStream((await running).text)).toMatchObject({ done: true, finish: ["length"] });
    await stopped;
  });
});
