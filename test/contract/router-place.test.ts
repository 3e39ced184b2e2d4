import { Metadata, status, type ServiceError } from "@grpc/grpc-js";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { parseCidr } from "../../services/shared/core/cidr.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { createChannelCredentials } from "../../services/shared/edge/grpc-client.ts";
import {
  createGrpcServer,
  listen,
  type GrpcServer,
} from "../../services/shared/edge/grpc-server.ts";
import { readInferenceError } from "../../services/shared/edge/inference-error.ts";
import { createMetrics } from "../../services/shared/edge/metrics.ts";
import { noTracing } from "../../services/shared/edge/tracing.ts";
import {
  Outcome,
  RouterClient,
  RouterService,
  type PlaceRequest,
  type PlaceResponse,
  type ReleaseResponse,
  type SetPolicyRequest,
  type SetPolicyResponse,
} from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import { admissionDefaults } from "../../services/router/core/admission/options.ts";
import { roomDefaults } from "../../services/router/core/admission/worker-rooms.ts";
import type { RouterCore } from "../../services/router/core/router-core.ts";
import { AdmissionTimer } from "../../services/router/edge/admission-timer.ts";
import { Decider } from "../../services/router/edge/decider.ts";
import { ModelRuntimes } from "../../services/router/edge/model-runtimes.ts";
import type { PeerLinks } from "../../services/router/edge/peer-links.ts";
import {
  createRouterService,
  type RouterServiceDependencies,
} from "../../services/router/edge/router-server.ts";
import { routerMetrics } from "../../services/router/metrics.ts";
import { memberFacts, routerCore } from "../support/router-builders.ts";

const term = { requestsPerSecond: 0, tokensPerSecond: 0, weight: 1 };
let core: RouterCore;
let server: GrpcServer;
let client: RouterClient;
let timer: AdmissionTimer;

/** One worker that takes one request at a time, behind a real socket. */
beforeEach(async () => {
  core = routerCore({
    rooms: { ...roomDefaults, openMax: 1 },
    admission: {
      ...admissionDefaults,
      classes: [
        { name: "default", priority: 0, weight: 1, ttftMs: 0, itlMs: 0, waitMsMax: 5_000 },
        { name: "now", priority: 0, weight: 1, ttftMs: 0, itlMs: 0, waitMsMax: 0 },
      ],
      tenants: new Map([["slow", { ...term, requestsPerSecond: 0.01 }]]),
    },
  });
  core.admit(memberFacts(0), 1, realClock.now());
  timer = new AdmissionTimer(core, realClock);
  const log = pino({ level: "silent" });
  const settle = (): void => {
    timer.run();
    core.takeEffects();
  };
  const decider = new Decider({
    core,
    runtimes: new ModelRuntimes({ hashSeed: new Uint8Array(32), log, cacheFolder: "" }),
    clock: realClock,
    tracing: noTracing,
    metrics: createMetrics(routerMetrics).metrics,
    defaultPool: "default",
    blockSizeTokens: 16,
    duplexFallbacks: false,
    admissionWaitMsMax: 5_000,
    onDecision: () => undefined,
    onWaiting: settle,
  });
  const dependencies: Partial<RouterServiceDependencies> = {
    core,
    decider,
    clock: realClock,
    peers: { setPolicy: () => Promise.resolve(["r9"]) } as unknown as PeerLinks,
    topology: { changed: () => undefined } as unknown as RouterServiceDependencies["topology"],
    instance: "r0",
    defaultPool: "default",
    settle,
  };
  server = createGrpcServer({
    callers: [
      {
        service: "kvmesh.router.v1.Router",
        allowed: [parseCidr("127.0.0.0/8")].flatMap((cidr) => cidr ?? []),
      },
    ],
    messageBytesMax: 1024 * 1024,
    reflection: false,
  });
  server.add(RouterService, createRouterService(dependencies as RouterServiceDependencies));
  const port = await listen(server.server, "127.0.0.1", 0);
  client = new RouterClient(`127.0.0.1:${port}`, createChannelCredentials());
});

afterEach(() => {
  timer.stop();
  client.close();
  server.server.forceShutdown();
});

interface Asked {
  readonly dryRun?: boolean;
  readonly hints?: Readonly<Record<string, string>>;
  readonly deadlineMs?: number;
}

function place(asked: Asked = {}): Promise<PlaceResponse> {
  const request: PlaceRequest = {
    requestId: "",
    prompt: { $case: "tokens", value: { model: "m", ids: [1, 2, 3], tokensMax: 0 } },
    subset: [],
    excludedWorkerIds: [],
    dryRun: asked.dryRun ?? false,
  };
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(asked.hints ?? {})) metadata.set(name, value);
  const options = asked.deadlineMs === undefined ? {} : { deadline: Date.now() + asked.deadlineMs };
  return new Promise((resolve, reject) => {
    client.place(request, metadata, options, (error: ServiceError | null, answer) => {
      if (error === null) resolve(answer);
      else reject(error);
    });
  });
}

function release(decisionId: string): Promise<ReleaseResponse> {
  return new Promise((resolve, reject) => {
    client.release({ decisionId }, (error: ServiceError | null, answer) => {
      if (error === null) resolve(answer);
      else reject(error);
    });
  });
}

function setPolicy(request: SetPolicyRequest): Promise<SetPolicyResponse> {
  return new Promise((resolve, reject) => {
    client.setPolicy(request, (error: ServiceError | null, answer) => {
      if (error === null) resolve(answer);
      else reject(error);
    });
  });
}

const waiting = (): number => core.gates.get("default")?.admission.waitingCount ?? 0;

async function refusalOf(asked: Asked): Promise<ServiceError> {
  const answer = await place(asked).catch((error: unknown) => error);
  expect(answer).toBeInstanceOf(Error);
  return answer as ServiceError;
}

describe("Router.Place", () => {
  test("waits for a worker with room, and gets it when a reservation is released", async () => {
    const first = await place();
    expect(first.decision?.outcome).toBe(Outcome.OUTCOME_PLACED);
    const second = place();
    await vi.waitFor(() => {
      expect(waiting()).toBe(1);
    });
    expect(core.book.openCount).toBe(1);
    expect(await release(first.decision?.id ?? "")).toEqual({ wasOpen: true });
    const { decision } = await second;
    expect(decision?.outcome).toBe(Outcome.OUTCOME_PLACED);
    expect(decision?.admission?.waitedMs).toBeGreaterThan(0);
    expect(await release(first.decision?.id ?? "")).toEqual({ wasOpen: false });
  });

  test("tells a dry run at once where the request would go, and reserves nothing", async () => {
    await place();
    const { decision } = await place({ dryRun: true });
    expect(decision?.outcome).toBe(Outcome.OUTCOME_PLACED);
    expect([core.book.openCount, waiting()]).toEqual([1, 0]);
  });

  test("forgets a call whose deadline passes while it waits", async () => {
    await place();
    const error = await refusalOf({ deadlineMs: 200 });
    expect(error.code).toBe(status.DEADLINE_EXCEEDED);
    await vi.waitFor(() => {
      expect(waiting()).toBe(0);
    });
    expect(core.book.openCount).toBe(1);
  });

  test("refuses a class that does not wait with the reason and when to come again", async () => {
    await place();
    const error = await refusalOf({ hints: { "x-kvmesh-priority": "now" } });
    expect(error.code).toBe(status.RESOURCE_EXHAUSTED);
    expect(error.metadata.get("kvmesh-error-code")).toEqual(["overloaded"]);
    expect(error.metadata.get("x-kvmesh-shed-reason")).toEqual(["sheddable"]);
    expect(Number(error.metadata.get("retry-after-ms")[0])).toBeGreaterThanOrEqual(1_000);
    expect(error.metadata.get("grpc-retry-pushback-ms")).toEqual(
      error.metadata.get("retry-after-ms"),
    );
    const retryAfterMs = Number(error.metadata.get("retry-after-ms")[0]);
    expect(readInferenceError(error, { requestId: "", resumeToken: "" })).toMatchObject({
      reason: "overloaded",
      retryAfterMs,
      quotas: [],
    });
  });

  test("refuses a tenant that is over its rate as exhausted", async () => {
    const hints = { "x-kvmesh-tenant": "slow" };
    await place({ hints });
    const error = await refusalOf({ hints });
    expect(error.code).toBe(status.RESOURCE_EXHAUSTED);
    expect(error.metadata.get("x-kvmesh-shed-reason")).toEqual(["tenant_rate"]);
    expect(error.metadata.get("kvmesh-error-code")).toEqual(["tenant_limited"]);
    const { quotas, retryAfterMs } = readInferenceError(error, { requestId: "", resumeToken: "" });
    expect(quotas).toMatchObject([{ subject: "tenant" }]);
    expect(retryAfterMs).toBeGreaterThan(0);
  });
});

describe("Router.SetPolicy", () => {
  test("changes the policy of one pool and names who took it", async () => {
    const asked = { pool: "default", policy: "round-robin", propagate: true, placeOnArrival: true };
    expect(await setPolicy(asked)).toEqual({ previousPolicy: "kv", appliedBy: ["r0", "r9"] });
    expect(core.policyOf("default")).toBe("round-robin");
    expect(await setPolicy({ ...asked, policy: "kv", propagate: false })).toEqual({
      previousPolicy: "round-robin",
      appliedBy: ["r0"],
    });
  });

  test("refuses a policy that does not exist, and names those that do", async () => {
    const asked = setPolicy({ pool: "", policy: "best", propagate: false, placeOnArrival: false });
    await expect(asked).rejects.toThrow(/policy "best" does not exist; policies: .*round-robin/);
    expect(core.policyOf("default")).toBe("kv");
  });
});
