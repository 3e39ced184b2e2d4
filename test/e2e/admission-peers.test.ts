import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readSamples } from "../../services/cli/core/metrics-text.ts";
import type { ManagedProcess } from "../../services/cli/edge/up/launcher.ts";
import { freePorts } from "../../services/cli/edge/up/port-check.ts";
import { StateFolder } from "../../services/cli/edge/up/state-folder.ts";
import { createChannelCredentials } from "../../services/shared/edge/grpc-client.ts";
import { loadKeys } from "../../services/shared/edge/keys.ts";
import {
  RouterClient,
  type PlaceRequest,
  type PlaceResponse,
} from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import { benchModel } from "../load/chat-prompts.ts";
import { RouterMetrics } from "../load/router-metrics.ts";
import { ScriptedMembers } from "../load/scripted-members.ts";
import { eventually } from "../support/mesh.ts";
import { serviceProcess } from "../support/service-process.ts";

interface Router {
  readonly process: ManagedProcess;
  readonly client: RouterClient;
  readonly hotPort: number;
  readonly httpPort: number;
}

let folder: string;
let routers: Router[];
let members: ScriptedMembers[];

/** Two real routers that know each other, and one worker that takes one request at a time. */
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-admission-peers-"));
  const state = new StateFolder(folder);
  const keysFile = state.prepare("");
  const keys = loadKeys(keysFile);
  const ports = await freePorts("127.0.0.1", 6, Math.random);
  const control = (i: number): string => `127.0.0.1:${String(ports[3 * i])}`;
  routers = [0, 1].map((i) => {
    const hotPort = ports[3 * i + 1] as number;
    const httpPort = ports[3 * i + 2] as number;
    const settings = {
      instance: `r${i}`,
      hotPort,
      controlPort: ports[3 * i] as number,
      httpPort,
      keysFile,
      peers: [control(1 - i)],
      blockSizeTokens: 32,
      drainServeMs: 4_000,
      drainMsMax: 10_000,
      admission: { worker: { openMax: 1 } },
    };
    return {
      process: serviceProcess(state, { name: `router-${i}`, service: "router", settings }),
      client: new RouterClient(control(i), createChannelCredentials()),
      hotPort,
      httpPort,
    };
  });
  await Promise.all(routers.map(({ process }) => process.start()));
  members = await Promise.all(
    [0, 1].map((i) => ScriptedMembers.join({ count: 1, target: control(i), keys })),
  );
  for (const { httpPort } of routers) {
    await eventually(
      "the routers serve and know each other",
      async () => {
        const { status } = await fetch(`http://127.0.0.1:${String(httpPort)}/healthz`);
        return status === 200 && (await syncedPeers(httpPort)) === 1;
      },
      30_000,
    );
  }
}, 60_000);

afterEach(async () => {
  for (const one of members) one.close();
  for (const { client } of routers) client.close();
  await Promise.all(routers.map(({ process }) => process.stop(10_000)));
  rmSync(folder, { recursive: true, force: true });
});

async function syncedPeers(httpPort: number): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${String(httpPort)}/metrics`)).text();
  const samples = readSamples(text, ["kvmesh_router_peers"]);
  return samples.find(({ labels }) => labels["state"] === "synced")?.value ?? 0;
}

function place(router: Router, over: Partial<PlaceRequest> = {}): Promise<PlaceResponse> {
  const request: PlaceRequest = {
    requestId: "",
    prompt: { $case: "tokens", value: { model: benchModel, ids: [1, 2, 3], tokensMax: 0 } },
    subset: [],
    excludedWorkerIds: [],
    dryRun: false,
    ...over,
  };
  const options = { deadline: Date.now() + 20_000 };
  return new Promise((resolve, reject) => {
    router.client.place(request, new Metadata(), options, (error: ServiceError | null, answer) => {
      if (error === null) resolve(answer);
      else reject(error);
    });
  });
}

function release(router: Router, decisionId: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    router.client.release({ decisionId }, (error: ServiceError | null, answer) => {
      if (error === null) resolve(answer.wasOpen);
      else reject(error);
    });
  });
}

async function metric(router: Router, name: string): Promise<number> {
  return (await RouterMetrics.read(router.httpPort)).total(name);
}

const waiting = "kvmesh_router_admission_waiting";
const open = "kvmesh_router_reservations_open";

test("two routers let their requests wait for one worker, and neither starves nor gives it too much", async () => {
  const [a, b] = routers as [Router, Router];
  const first = await place(a);
  await eventually("the other router knows of it", async () => (await metric(b, open)) === 1);
  // Three wait at one and three at the other, for the worker that the first request fills.
  const owed = [a, a, a, b, b, b].map((router) => ({ router, answer: place(router) }));
  const done = new Map<Router, number>();
  const running: { readonly router: Router; readonly id: string }[] = [];
  for (const { router, answer } of owed) {
    void answer.then(({ decision }) => {
      running.push({ router, id: decision?.id ?? "" });
      done.set(router, (done.get(router) ?? 0) + 1);
    });
  }
  await eventually("they wait", async () => {
    return (await metric(a, waiting)) === 3 && (await metric(b, waiting)) === 3;
  });
  expect(running).toEqual([]);
  let ends = { router: a, id: first.decision?.id ?? "" };
  let most = 0;
  for (let served = 0; served < owed.length; served++) {
    expect(await release(ends.router, ends.id)).toBe(true);
    const next = await eventually("the next one has its turn", () => running.shift(), 8_000);
    // What both placed before they heard of each other.
    most = Math.max(most, 1 + running.length);
    ends = next;
  }
  await release(ends.router, ends.id);
  expect(most).toBeLessThanOrEqual(2);
  expect([done.get(a), done.get(b)]).toEqual([3, 3]);
  await Promise.all(owed.map(({ answer }) => answer));
}, 60_000);

test("a router that stops tells the other of its last placements", async () => {
  const [a, b] = routers as [Router, Router];
  // An Envoy asks for its health: so it serves on for a while.
  const envoy = new Client(`127.0.0.1:${String(a.hotPort)}`, credentials.createInsecure());
  const asIs = (bytes: Buffer): Buffer => bytes;
  await new Promise((resolve) => {
    const options = { deadline: Date.now() + 5_000 };
    const path = "/grpc.health.v1.Health/Check";
    envoy.makeUnaryRequest(path, asIs, asIs, Buffer.alloc(0), options, resolve);
  });
  a.process.kill("SIGTERM");
  await eventually("it drains", async () => {
    const { status } = await fetch(`http://127.0.0.1:${String(a.httpPort)}/healthz`);
    return status === 503;
  });
  expect(await metric(b, open)).toBe(0);
  const { decision } = await place(a);
  expect(decision?.id).toMatch(/^r0\./);
  await eventually("the other router knows of it", async () => (await metric(b, open)) === 1);
  expect(a.process.running).toBe(true);
  envoy.close();
}, 60_000);
