import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InferenceCaller } from "../../services/shared/edge/inference-client.ts";
import { InferenceError } from "../../services/shared/edge/inference-error.ts";
import type { GenerateRequest } from "../../services/shared/gen/kvmesh/inference/v1/inference.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";

let mesh: TestMesh;
const callers: InferenceCaller[] = [];

/** Sum of a router metric's values with these labels. */
async function metric(name: string, labels = ""): Promise<number> {
  const text = await (await fetch(`${mesh.routerHttp[0] ?? ""}/metrics`)).text();
  return text
    .split("\n")
    .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
    .filter((line) => line.includes(labels))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}

/** A client of the inference service at an address. */
function callerAt(address: string): InferenceCaller {
  const caller = new InferenceCaller([address]);
  callers.push(caller);
  return caller;
}

const trusted = (): InferenceCaller => callerAt(new URL(mesh.trustedUrl).host);

const request = (over: Partial<GenerateRequest> = {}): GenerateRequest => ({
  requestId: "",
  model: mesh.model,
  input: { $case: "text", value: "Say what a relay does between two engines. ".repeat(20) },
  sampling: { tokensMax: 30, stop: [], stopTokenIds: [], ignoreEos: true },
  tenant: "",
  session: "",
  priority: "",
  ...over,
});

async function failureOf(answer: Promise<unknown>): Promise<InferenceError> {
  const error: unknown = await answer.then(
    () => new Error("it did not fail"),
    (failed: unknown) => failed,
  );
  if (error instanceof InferenceError) return error;
  throw error;
}

beforeAll(async () => {
  mesh = await startMesh({
    engines: 2,
    mesh: { relays: 1 },
    settings: {
      engine: { kv: { enabled: true } },
      worker: { engine: { kvTransfer: "NixlConnector", kvBytesPerToken: 64 } },
    },
  });
  await mesh.routers.setPolicy("kv", { placeOnArrival: false, disaggregation: "always" });
}, 120_000);

afterAll(async () => {
  for (const caller of callers) caller.close();
  await mesh.stop();
}, 60_000);

test("Envoy sends a pair to the relay, the answer comes back, and its record closes both legs", async () => {
  const content = "Say what a relay does between two engines. ".repeat(40);
  const answer = await mesh.chat({ content, stream: true, maxTokens: 40 });
  expect(answer.status).toBe(200);
  expect(answer.content.length).toBeGreaterThan(20);
  const { decision } = await mesh.routers.explain({ kind: "last" });
  expect(decision?.pair).toMatchObject({ form: "pair", why: "always", relays: ["relay-0"] });
  const [endpoint] = decision?.endpoints ?? [];
  expect(endpoint).toBe(mesh.relays[0]);
  await eventually("nothing is reserved", async () => {
    return (await metric("kvmesh_router_reservations_open")) === 0;
  });
  await eventually("the access log closed it", async () => {
    const again = await mesh.routers.explain({ kind: "decision", id: decision?.id ?? "" });
    const { observed } = again.decision ?? {};
    return observed?.closedBy === "access_log" && observed.servedEndpoint === endpoint;
  });
  const ends = await metric("kvmesh_router_leg_ends_total", 'outcome="done"');
  expect(ends).toBeGreaterThanOrEqual(2);
});

describe("gRPC through Envoy", () => {
  test("streams text and ids without a gap, and the decision is a pair", async () => {
    const indices: number[] = [];
    let decision = "";
    let text = "";
    const done = await trusted().generate(request(), {
      onStarted: ({ decisionId }) => {
        decision = decisionId;
      },
      onTokens: (tokens) => {
        for (let i = 0; i < tokens.count; i++) indices.push(tokens.index + i);
        text += tokens.text;
      },
    });
    expect(done.usage?.completionTokens).toBe(30);
    expect(indices).toEqual(Array.from({ length: 30 }, (_, index) => index));
    expect(text.length).toBeGreaterThan(30);
    const explained = await mesh.routers.explain({ kind: "decision", id: decision });
    expect(explained.decision?.pair?.form).toBe("pair");
  });

  test("a deadline of the caller reaches the relay, and ends the call where it stands", async () => {
    const long = request({
      sampling: { tokensMax: 20_000, stop: [], stopTokenIds: [], ignoreEos: true },
    });
    let got = 0;
    const from = performance.now();
    const failed = await failureOf(
      trusted().generate(long, {
        timeoutMs: 700,
        onTokens: ({ count }) => {
          got += count;
        },
      }),
    );
    expect(failed.status).toBe(status.DEADLINE_EXCEEDED);
    expect(got).toBeGreaterThan(0);
    expect(performance.now() - from).toBeLessThan(1_500);
    await eventually("engines have let go of it", async () => {
      return (await metric("kvmesh_router_reservations_open")) === 0;
    });
  });

  test("Cancel ends a request by its name, and an abort of the caller is a Cancel", async () => {
    const caller = trusted();
    const stop = new AbortController();
    const long = request({
      requestId: "to-be-cancelled",
      sampling: { tokensMax: 20_000, stop: [], stopTokenIds: [], ignoreEos: true },
    });
    const cancelled = await failureOf(
      caller.generate(long, {
        onTokens: async () => {
          if (await caller.cancel("to-be-cancelled")) stop.abort();
        },
      }),
    );
    expect(cancelled).toMatchObject({ status: status.CANCELLED, reason: "cancelled" });
    const aborted = new AbortController();
    const left = await failureOf(
      caller.generate(long, {
        signal: aborted.signal,
        onTokens: () => {
          aborted.abort();
        },
      }),
    );
    expect(left.status).toBe(status.CANCELLED);
    expect(await caller.cancel("to-be-cancelled")).toBe(false);
  });

  test("refusals carry their reason, and public callers have no such path", async () => {
    const unknown = await failureOf(
      trusted().generate(request({ model: "nobody" }), { onTokens: () => undefined }),
    );
    expect(unknown).toMatchObject({ status: status.NOT_FOUND, reason: "model_not_found" });
    expect(unknown.mayRetry).toBe(false);
    const outside = callerAt(new URL(mesh.url).host);
    const refused = await failureOf(outside.generate(request(), { onTokens: () => undefined }));
    expect(refused.status).toBe(status.UNIMPLEMENTED);
  });
});

test("a stream that a trusted caller wants guarded passes the relay whole; one that cannot be says why", async () => {
  const settings = { placeOnArrival: false };
  await mesh.routers.setPolicy("kv", { ...settings, disaggregation: "never" });
  const headers = { "x-kvmesh-guard": "relay" };
  const ask = { url: mesh.trustedUrl, headers, maxTokens: 20 };
  const guarded = await mesh.chat(ask);
  expect([guarded.status, guarded.headers.get("x-kvmesh-guard")]).toEqual([200, "on"]);
  const off = await mesh.chat({ ...ask, body: { logprobs: true } });
  expect([off.status, off.headers.get("x-kvmesh-guard")]).toEqual([200, "off; reason=logprobs"]);
  // Nobody else chooses, and nobody hears of what he did not ask for.
  const stranger = await mesh.chat({ ...ask, url: mesh.url });
  expect([stranger.status, stranger.headers.get("x-kvmesh-guard")]).toEqual([200, null]);
  await mesh.routers.setPolicy("kv", { ...settings, disaggregation: "always" });
});

test("without the relay the same requests run whole, and gRPC callers hear that nobody serves them", async () => {
  await mesh.process("relay-0").kill("SIGKILL");
  await eventually(
    "the relay's endpoint is gone",
    async () => {
      return (await metric("kvmesh_router_relays")) === 0;
    },
    15_000,
  );
  const content = "Say what a relay does between two engines. ".repeat(40);
  const whole = await mesh.chat({ content, maxTokens: 10 });
  expect(whole.status).toBe(200);
  const failed = await failureOf(
    trusted().generate(request(), { timeoutMs: 3_000, onTokens: () => undefined }),
  );
  expect([status.UNAVAILABLE, status.DEADLINE_EXCEEDED]).toContain(failed.status);
});
