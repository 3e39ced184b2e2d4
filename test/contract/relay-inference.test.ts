import { setTimeout } from "node:timers/promises";
import { join } from "node:path";
import {
  credentials,
  loadPackageDefinition,
  Metadata,
  status,
  type Client,
  type ClientDuplexStream,
  type ServiceError,
} from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterEach, describe, expect, test } from "vitest";
import type { PlaceAnswer, PlaceAsk } from "../../services/relay/edge/placer.ts";
import { Status } from "../../services/shared/gen/google/rpc/status.ts";
import {
  FinishReason,
  InferenceClient,
  type GenerateRequest,
  type GenerateResponse,
} from "../../services/shared/gen/kvmesh/inference/v1/inference.ts";
import type { Placement } from "../../services/shared/core/placement-token/placement.ts";
import { startScriptedEngine, type ScriptedEngine } from "../support/relay-engines.ts";
import { bytesOf, generate, idsOf } from "../support/relay-oracle.ts";
import { legAt, post, startTestRelay, type TestRelay } from "../support/relay-requests.ts";

/* observability-and-contracts.md §2.7: codes, details and pushback that backend services act on. */

interface Mesh {
  readonly relay: TestRelay;
  readonly one: ScriptedEngine;
  readonly two: ScriptedEngine;
  readonly client: InferenceClient;
  readonly asked: PlaceAsk[];
  /** Changes what is placed, or what is answered instead. */
  place: Partial<Placement>;
  refuse: PlaceAnswer | undefined;
  /** How long a placement takes, ms. */
  placeMs: number;
}

/** What a router hears of a placement that was not used. */
const notStarted = { ended: true, outcome: "not_started", last: true };

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

const guard = { freezeItlMultiple: 50, freezeMsMin: 2_000, migrationsMax: 3 };

async function start(settings: Record<string, unknown> = {}): Promise<Mesh> {
  const one = await startScriptedEngine({ cachedTokens: 2 });
  const two = await startScriptedEngine();
  const asked: PlaceAsk[] = [];
  const relay = await startTestRelay({
    settings,
    placer: {
      place: async (ask) => {
        asked.push(ask);
        if (mesh.placeMs > 0) await setTimeout(mesh.placeMs);
        if (mesh.refuse !== undefined) return mesh.refuse;
        const engine = ask.excluded.length > 0 ? two : one;
        const token = relay.sign(ask.body, {
          legs: [legAt(engine.address, "whole")],
          guard,
          ...mesh.place,
        });
        return { kind: "placed", token };
      },
    },
  });
  const client = new InferenceClient(
    `127.0.0.1:${String(relay.relay.h2Port)}`,
    credentials.createInsecure(),
  );
  const mesh: Mesh = { relay, one, two, client, asked, place: {}, refuse: undefined, placeMs: 0 };
  open.push(one, two, { close: () => relay.stop() }, client);
  return mesh;
}

const requestOf = (over: Partial<GenerateRequest> = {}): GenerateRequest => ({
  requestId: "",
  model: "m",
  input: { $case: "text", value: "hello" },
  sampling: { tokensMax: 30, stop: [], stopTokenIds: [], ignoreEos: true },
  tenant: "acme",
  session: "",
  priority: "",
  ...over,
});

interface Got {
  readonly messages: GenerateResponse[];
  readonly error: ServiceError | undefined;
}

function run(
  { client }: Mesh,
  request: GenerateRequest,
  options: { deadlineMs?: number; onTokens?: () => void } = {},
): Promise<Got> {
  const call = client.generate(
    request,
    new Metadata(),
    options.deadlineMs === undefined ? {} : { deadline: Date.now() + options.deadlineMs },
  );
  const messages: GenerateResponse[] = [];
  return new Promise((resolve) => {
    call.on("data", (message: GenerateResponse) => {
      messages.push(message);
      if (message.message?.$case === "tokens") options.onTokens?.();
    });
    call.on("error", (error: ServiceError) => {
      resolve({ messages, error });
    });
    call.on("end", () => {
      resolve({ messages, error: undefined });
    });
  });
}

const tokensOf = (got: Got): { index: number; ids: number[]; text: string; count: number }[] =>
  got.messages.flatMap(({ message }) => (message?.$case === "tokens" ? [message.value] : []));

function detailsOf(error: ServiceError | undefined): {
  readonly reason: string;
  readonly types: string[];
  readonly pushback: string | undefined;
} {
  const [raw] = error?.metadata.get("grpc-status-details-bin") ?? [];
  const decoded = Status.decode(raw as Buffer);
  return {
    reason: String(error?.metadata.get("kvmesh-error-code")[0]),
    types: decoded.details.map(({ typeUrl }) => typeUrl.replace(/.*\./, "")),
    pushback: error?.metadata.get("grpc-retry-pushback-ms")[0]?.toString(),
  };
}

const expectedOf = (promptIds: number[]): { ids: number[]; text: string } => {
  const steps = [...generate({ promptIds, tokensMax: 30, ignoreEos: true })];
  return { ids: steps.map(({ id }) => id), text: steps.map(({ text }) => text).join("") };
};

describe("Inference/Generate", () => {
  test.each<[string, GenerateRequest["input"], number[]]>([
    ["text", { $case: "text", value: "hello" }, idsOf("hello")],
    ["token ids", { $case: "tokenIds", value: { ids: [9, 8, 7] } }, [9, 8, 7]],
    [
      "messages",
      { $case: "messages", value: { messages: [{ role: "user", content: "hi" }] } },
      idsOf("<user>hi<assistant>"),
    ],
  ])("streams ids and text with indices, then usage: %s", async (_name, input, promptIds) => {
    const mesh = await start();
    const got = await run(mesh, requestOf({ input }));
    expect(got.error).toBeUndefined();
    expect(got.messages[0]?.message).toMatchObject({
      $case: "started",
      value: { guarded: true, unguardedReason: "" },
    });
    const tokens = tokensOf(got);
    const expected = expectedOf(promptIds);
    expect(tokens.flatMap(({ ids }) => ids)).toEqual(expected.ids);
    expect(tokens.map(({ text }) => text).join("")).toBe(expected.text);
    let index = 0;
    for (const one of tokens) {
      expect(one.index).toBe(index);
      // Only the limit may cut a character in two.
      if (one !== tokens[tokens.length - 1]) {
        expect(Buffer.concat(one.ids.map(bytesOf)).toString()).toBe(one.text);
      }
      index += one.count;
    }
    expect(got.messages[got.messages.length - 1]?.message).toEqual({
      $case: "finished",
      value: {
        reason: FinishReason.FINISH_REASON_LENGTH,
        usage: { promptTokens: promptIds.length, cachedTokens: 2, completionTokens: 30 },
      },
    });
    expect(await mesh.relay.metrics()).toContain("kvmesh_relay_requests_total");
  });

  test("an engine that is lost is not seen; one that cannot be followed is ABORTED", async () => {
    const mesh = await start();
    mesh.one.faults = { breakAfter: 10 };
    const got = await run(mesh, requestOf());
    expect(tokensOf(got).flatMap(({ ids }) => ids)).toEqual(expectedOf(idsOf("hello")).ids);
    mesh.two.faults = { breakAfter: 5 };
    mesh.place = { guard: { ...guard, migrationsMax: 0 } };
    const lost = await run(mesh, requestOf());
    expect(lost.error?.code).toBe(status.ABORTED);
    expect(detailsOf(lost.error)).toMatchObject({ reason: "worker_lost", pushback: "-1" });
  });

  test("a deadline that cannot be met sheds the request before an engine sees it", async () => {
    const mesh = await start();
    mesh.place = {
      forecast: {
        promptTokens: 1,
        cachedTokens: 0,
        prefillMs: 1,
        transferMs: 0,
        transferBytes: 0,
        ttftMs: 60_000,
        itlMs: 1,
      },
    };
    const started = performance.now();
    const got = await run(mesh, requestOf(), { deadlineMs: 5_000 });
    expect(got.error?.code).toBe(status.DEADLINE_EXCEEDED);
    expect(got.error?.details).toContain("first token expected in 60000 ms");
    expect(performance.now() - started).toBeLessThan(2_000);
    expect(mesh.one.seen).toEqual([]);
    expect(mesh.relay.notices).toMatchObject([notStarted]);
  });

  test("a placement that is refused or comes too late is given back", async () => {
    const mesh = await start();
    mesh.place = { bodySha256: new Uint8Array(32) };
    const { error } = await run(mesh, requestOf());
    expect(error?.code).toBe(status.UNAUTHENTICATED);
    expect(mesh.relay.notices).toMatchObject([notStarted]);
    mesh.place = {};
    mesh.placeMs = 200;
    const late = await run(mesh, requestOf(), { deadlineMs: 50 });
    expect(late.error?.code).toBe(status.DEADLINE_EXCEEDED);
    await expect.poll(() => mesh.relay.notices.length).toBe(2);
    expect(mesh.relay.notices[1]).toMatchObject(notStarted);
    expect(mesh.one.seen).toEqual([]);
  });

  test("a placement that comes after the client left is given back", async () => {
    const mesh = await start();
    mesh.one.faults = { breakAfter: 3 };
    const got = await run(mesh, requestOf(), {
      deadlineMs: 300,
      onTokens: () => {
        mesh.placeMs = 600;
      },
    });
    expect(got.error?.code).toBe(status.DEADLINE_EXCEEDED);
    await expect
      .poll(() => mesh.relay.notices[mesh.relay.notices.length - 1])
      .toMatchObject({ ...notStarted, workerId: `w-${mesh.two.address}` });
    expect(mesh.two.seen).toEqual([]);
  });

  test("a request_id is taken from when its placement is asked for until it is over", async () => {
    const mesh = await start();
    mesh.placeMs = 100;
    const both = await Promise.all([
      run(mesh, requestOf({ requestId: "twice" })),
      run(mesh, requestOf({ requestId: "twice" })),
    ]);
    expect(both.map(({ error }) => error?.code)).toEqual([undefined, status.ALREADY_EXISTS]);
    mesh.refuse = { kind: "refused", outcome: "refused", code: "overloaded", message: "full" };
    const refused = await run(mesh, requestOf({ requestId: "twice" }));
    expect(refused.error?.code).toBe(status.RESOURCE_EXHAUSTED);
    mesh.refuse = undefined;
    expect((await run(mesh, requestOf({ requestId: "twice" }))).error).toBeUndefined();
  });

  test("a relay without room asks for no placement", async () => {
    const mesh = await start({ limits: { requestsMax: 1 } });
    mesh.one.faults = { firstMs: 300 };
    // Over HTTP/1.1, since streams of HTTP/2 have the same bound.
    const body = JSON.stringify({ model: "m", prompt: "hello", max_tokens: 3, ignore_eos: true });
    const token = mesh.relay.sign(body, { legs: [legAt(mesh.one.address, "whole")] });
    const first = post(mesh.relay.relay.httpPort, "/v1/completions", body, {
      "x-kvmesh-placement": token,
    });
    await expect.poll(() => mesh.relay.relay.openRequests).toBe(1);
    const second = await run(mesh, requestOf());
    expect(second.error?.code).toBe(status.RESOURCE_EXHAUSTED);
    expect(mesh.asked).toEqual([]);
    expect((await first).status).toBe(200);
  });

  test("a deadline that passes stops the engine", async () => {
    const mesh = await start();
    mesh.one.faults = { tokenMs: 50 };
    const got = await run(mesh, requestOf(), { deadlineMs: 400 });
    expect(got.error?.code).toBe(status.DEADLINE_EXCEEDED);
    await expect.poll(() => mesh.one.seen[0]?.abortedAt ?? 0).toBeGreaterThan(0);
    await expect.poll(() => mesh.relay.relay.openRequests).toBe(0);
  });

  test("Cancel reaches the engine within 200 ms", async () => {
    const mesh = await start();
    mesh.one.faults = { tokenMs: 20 };
    let cancelledAt = 0;
    const cancel = (requestId: string): Promise<boolean> =>
      new Promise((resolve, reject) => {
        mesh.client.cancel({ requestId }, (error, response) => {
          if (error === null) resolve(response.wasOpen);
          else reject(error);
        });
      });
    const got = await run(mesh, requestOf({ requestId: "job-7" }), {
      onTokens: () => {
        if (cancelledAt > 0) return;
        cancelledAt = performance.now();
        void cancel("job-7");
      },
    });
    expect(got.error?.code).toBe(status.CANCELLED);
    await expect.poll(() => mesh.one.seen[0]?.abortedAt ?? 0).toBeGreaterThan(0);
    expect((mesh.one.seen[0]?.abortedAt ?? Infinity) - cancelledAt).toBeLessThan(200);
    expect(await cancel("job-7")).toBe(false);
  });

  test.each<[string, PlaceAnswer & { kind: "refused" }, number, string[], string | undefined]>([
    [
      "overload",
      { kind: "refused", outcome: "refused", code: "overloaded", message: "full" },
      status.RESOURCE_EXHAUSTED,
      ["ErrorInfo", "RetryInfo"],
      "1000",
    ],
    [
      "a tenant's limit",
      { kind: "refused", outcome: "refused", code: "tenant_limited", message: "over" },
      status.RESOURCE_EXHAUSTED,
      ["ErrorInfo", "RetryInfo", "QuotaFailure"],
      "1000",
    ],
    [
      "no router",
      { kind: "refused", outcome: "no_router", code: "worker_lost", message: "none" },
      status.UNAVAILABLE,
      ["ErrorInfo", "RetryInfo"],
      "1000",
    ],
    [
      "an unknown model",
      { kind: "refused", outcome: "refused", code: "model_not_found", message: "what" },
      status.NOT_FOUND,
      ["ErrorInfo"],
      "-1",
    ],
  ])("refusals carry what a caller acts on: %s", async (_name, refuse, code, types, pushback) => {
    const mesh = await start();
    mesh.refuse = refuse;
    const { error } = await run(mesh, requestOf());
    expect(error?.code).toBe(code);
    expect(detailsOf(error)).toMatchObject({ types, pushback });
  });

  test.each<[string, Record<string, unknown>, number, string]>([
    [
      "message above the limit",
      { limits: { bodyBytesMax: 1_024 } },
      status.RESOURCE_EXHAUSTED,
      "request_too_large",
    ],
    [
      "caller who is not on the list",
      { callers: { inference: ["10.0.0.0/8"] } },
      status.PERMISSION_DENIED,
      "permission_denied",
    ],
  ])("the transport refuses as everything else does: a %s", async (_name, over, code, reason) => {
    const mesh = await start(over);
    const large = requestOf({ input: { $case: "text", value: "x".repeat(4_000) } });
    const { error } = await run(mesh, large);
    expect(error?.code).toBe(code);
    expect(detailsOf(error)).toEqual({ reason, types: ["ErrorInfo"], pushback: "-1" });
  });

  test("a request's tenant and class go to the router, in the message or in the call", async () => {
    const mesh = await start();
    const told = (): Map<string, string> => new Map(mesh.asked[mesh.asked.length - 1]?.fields);
    await run(mesh, requestOf({ priority: "batch" }));
    expect(told().get("x-kvmesh-tenant")).toBe("acme");
    expect(told().get("x-kvmesh-priority")).toBe("batch");
    const metadata = new Metadata();
    metadata.set("x-kvmesh-tenant", "initech");
    metadata.set("x-kvmesh-slo-ttft-ms", "300");
    const call = mesh.client.generate(requestOf({ tenant: "" }), metadata);
    await new Promise((resolve) => call.on("data", () => undefined).on("end", resolve));
    expect(told().get("x-kvmesh-tenant")).toBe("initech");
    expect(told().get("x-kvmesh-slo-ttft-ms")).toBe("300");
  });

  test("its body counts as memory until it is not needed any more", async () => {
    const mesh = await start({ limits: { bodyMemoryBytesMax: 65_536 } });
    mesh.one.faults = { firstMs: 1_500 };
    const large = requestOf({ input: { $case: "text", value: "x".repeat(40_000) } });
    const first = run(mesh, large);
    await expect.poll(() => mesh.one.seen.length).toBe(1);
    const second = await run(mesh, large);
    expect(second.error?.code).toBe(status.RESOURCE_EXHAUSTED);
    expect(detailsOf(second.error)).toMatchObject({
      reason: "overloaded",
      types: ["ErrorInfo", "RetryInfo"],
      pushback: "1000",
    });
    expect((await first).error).toBeUndefined();
    mesh.one.faults = {};
    expect((await run(mesh, large)).error).toBeUndefined();
    expect(await mesh.relay.metrics()).toContain("kvmesh_relay_body_memory_bytes 0");
  });

  test("Cancel ends a request that waits for its placement, and gives the placement back", async () => {
    const mesh = await start();
    mesh.placeMs = 1_500;
    const running = run(mesh, requestOf({ requestId: "waits" }));
    await expect.poll(() => mesh.asked.length).toBe(1);
    const wasOpen = await new Promise<boolean | undefined>((resolve) => {
      mesh.client.cancel({ requestId: "waits" }, (_error, response) => {
        resolve(response.wasOpen);
      });
    });
    expect(wasOpen).toBe(true);
    const { error } = await running;
    expect(error?.code).toBe(status.CANCELLED);
    expect(detailsOf(error).reason).toBe("cancelled");
    await expect.poll(() => mesh.relay.notices, { timeout: 5_000 }).toMatchObject([notStarted]);
    expect(mesh.one.seen).toEqual([]);
  });

  test("what cannot be read is refused with details too", async () => {
    const mesh = await start();
    for (const method of ["Generate", "Cancel"]) {
      const error = await new Promise<ServiceError>((resolve) => {
        const take = (one: ServiceError | null): void => {
          if (one !== null) resolve(one);
        };
        const path = `/kvmesh.inference.v1.Inference/${method}`;
        const bytes = (value: Buffer): Buffer => value;
        mesh.client.makeUnaryRequest(path, bytes, bytes, Buffer.from([0xff, 0xff]), take);
      });
      expect(error.code, method).toBe(status.INVALID_ARGUMENT);
      expect(detailsOf(error)).toMatchObject({ reason: "invalid_request", types: ["ErrorInfo"] });
    }
  });

  test("bad requests name their field", async () => {
    const mesh = await start();
    for (const [request, field] of [
      [requestOf({ input: undefined }), "input"],
      [requestOf({ model: "" }), "model"],
      [requestOf({ requestId: "with space" }), "request_id"],
    ] as const) {
      const { error } = await run(mesh, request);
      expect(error?.code).toBe(status.INVALID_ARGUMENT);
      expect(error?.details).toContain(field);
      expect(detailsOf(error).types).toEqual(["ErrorInfo", "BadRequest"]);
    }
  });

  test("Resume with a forged token is refused, and begins nothing", async () => {
    const mesh = await start();
    const call = mesh.client.resume({ resumeToken: "forged", request: requestOf() });
    const error = await new Promise<ServiceError>((resolve) => {
      call.on("data", () => undefined);
      call.on("error", resolve);
    });
    expect(error.code).toBe(status.UNAUTHENTICATED);
    expect(mesh.one.seen).toEqual([]);
  });
});

describe("server reflection", () => {
  test.each(["v1", "v1alpha"])("%s lists and describes what relays serve", async (version) => {
    const mesh = await start();
    const folder = join(import.meta.dirname, "../../node_modules/@grpc/reflection/build/proto");
    const proto = join(folder, `grpc/reflection/${version}/reflection.proto`);
    const loaded = loadPackageDefinition(loadSync(proto, { keepCase: true }));
    type Stub = new (
      target: string,
      with_: ReturnType<typeof credentials.createInsecure>,
    ) => Client & { ServerReflectionInfo(): ClientDuplexStream<unknown, ReflectionAnswer> };
    const { grpc } = loaded as unknown as {
      grpc: { reflection: Record<string, { ServerReflection: Stub }> };
    };
    const Reflection = grpc.reflection[version]?.ServerReflection as Stub;
    const target = `127.0.0.1:${String(mesh.relay.relay.h2Port)}`;
    const client = new Reflection(target, credentials.createInsecure());
    open.push(client);
    const call = client.ServerReflectionInfo();
    const answers: ReflectionAnswer[] = [];
    const ended = new Promise((resolve, reject) => {
      call.on("data", (answer: ReflectionAnswer) => answers.push(answer));
      call.on("end", resolve);
      call.on("error", reject);
    });
    call.write({ list_services: "*" });
    call.write({ file_containing_symbol: "kvmesh.inference.v1.Inference" });
    call.write({ file_containing_symbol: "no.such.Thing" });
    call.end();
    await ended;
    const [list, file, missing] = answers;
    expect(list?.list_services_response?.service.map(({ name }) => name)).toContain(
      "kvmesh.inference.v1.Inference",
    );
    const [bytes] = file?.file_descriptor_response?.file_descriptor_proto ?? [];
    expect(Buffer.from(bytes ?? []).includes("GenerateRequest")).toBe(true);
    expect(missing?.error_response?.error_code).toBe(status.NOT_FOUND);
  });
});

interface ReflectionAnswer {
  readonly list_services_response?: { readonly service: readonly { readonly name: string }[] };
  readonly file_descriptor_response?: { readonly file_descriptor_proto: readonly Buffer[] };
  readonly error_response?: { readonly error_code: number };
}
