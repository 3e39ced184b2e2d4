import { readFileSync, writeFileSync } from "node:fs";
import { Client, credentials, Metadata, status, type StatusObject } from "@grpc/grpc-js";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { mergeSettings, type Settings } from "../../services/cli/core/mesh-plan.ts";
import type { ManagedProcess } from "../../services/cli/edge/up/launcher.ts";
import { createKeysFile } from "../../services/shared/edge/keys.ts";
import { kvmesh } from "../support/kvmesh-command.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { serviceProcess } from "../support/service-process.ts";
import { workerViews } from "../support/topology.ts";

const meshBlockSize = 16;

let mesh: TestMesh;
/** An engine beside the mesh's own, for workers that are to be refused. */
let spare: ManagedProcess;
let beside: ManagedProcess[] = [];
let started = 0;

beforeAll(async () => {
  mesh = await startMesh({
    routers: 2,
    engines: 2,
    envoy: false,
    // 127.0.0.2 is an address of this machine, and outside.
    settings: { router: { workers: { allowedCidrs: ["127.0.0.1/32"] } } },
  });
  spare = await startEngine("spare-engine", {});
  beside = [];
});

afterEach(async () => {
  await Promise.all(beside.map((one) => one.stop(2_000)));
  beside = [];
});

afterAll(async () => {
  await spare.stop(1_000);
  await mesh.stop();
});

function settingsOf(process: string, service: string): Settings {
  const text = readFileSync(mesh.state.file("config", `${process}.json`), "utf8");
  const all = JSON.parse(text) as Readonly<Record<string, Settings>>;
  return all[service] ?? {};
}

async function startEngine(name: string, over: Settings): Promise<ManagedProcess> {
  const own = { instance: name, port: 0, events: { port: 0, replayPort: 0 } };
  const settings = mergeSettings(mergeSettings(settingsOf("engine-0", "engine"), own), over);
  const engine = serviceProcess(mesh.state, { name, service: "engine", settings });
  beside.push(engine);
  await engine.start();
  return engine;
}

/** Starts a worker like the mesh's first but for `over`, beside `engine`. */
async function startWorker(engine: ManagedProcess, over: Settings): Promise<ManagedProcess> {
  const { http, events, replay } = engine.ports;
  const own = {
    workerId: `extra-${++started}`,
    httpPort: 0,
    engine: {
      url: `http://127.0.0.1:${http}`,
      eventsEndpoint: `tcp://127.0.0.1:${events}`,
      replayEndpoint: `tcp://127.0.0.1:${replay}`,
    },
  };
  const settings = mergeSettings(mergeSettings(settingsOf("worker-0", "worker"), own), over);
  const worker = serviceProcess(mesh.state, {
    name: `extra-worker-${started}`,
    service: "worker",
    settings,
  });
  beside.push(worker);
  await worker.start();
  return worker;
}

/** One line of a worker's log about a refusal. */
interface RefusedLine {
  readonly event: string;
  readonly router: string;
  readonly refusal: string;
  readonly reason: string;
  readonly mend: string;
}

/** Waits until both routers have refused a worker, and returns what its log says. */
async function refusedByBoth(worker: ManagedProcess): Promise<readonly RefusedLine[]> {
  return eventually(
    `${worker.name} says that both routers refuse it`,
    () => {
      const lines = worker
        .logTail(200)
        .filter((line) => line.startsWith("{"))
        .map((line) => JSON.parse(line) as RefusedLine)
        .filter((line) => line.event === "join_refused");
      return new Set(lines.map((line) => line.router)).size === 2 && lines;
    },
    30_000,
  );
}

/** Joins that the routers have refused, by code. */
async function refusals(): Promise<ReadonlyMap<string, number>> {
  const counts = new Map<string, number>();
  for (const url of mesh.routerHttp) {
    const text = await (await fetch(`${url}/metrics`)).text();
    for (const [, code = "", count] of text.matchAll(
      /^kvmesh_router_join_refused_total\{code="([^"]+)"\} (\S+)$/gm,
    )) {
      counts.set(code, (counts.get(code) ?? 0) + Number(count));
    }
  }
  return counts;
}

/** The mesh is as it was: both its workers are ready at both routers, nobody else is known. */
async function expectUntouched(): Promise<void> {
  const views = await workerViews(mesh);
  expect(views.size).toBe(2);
  for (const view of views.values()) {
    const seen = [...view.values()].map((one) => `${one.workerId} ${one.endpoint} ${one.state}`);
    expect(seen.toSorted()).toEqual(
      mesh.engineUrls.map((url, i) => `w${i} ${url.replace("http://", "")} ready`),
    );
  }
}

/** What `kvmesh doctor` says when `worker` is one of the mesh's. */
async function doctorOn(worker: ManagedProcess, workerId: string): Promise<string> {
  mesh.state.writeRun({
    startedUnixMs: Date.now(),
    demo: false,
    model: mesh.model,
    urls: { openai: mesh.url, trusted: mesh.trustedUrl, envoyAdmin: mesh.admin.url },
    routers: mesh.controls.map((control, i) => ({
      instance: `router-${i}`,
      control,
      http: (mesh.routerHttp[i] ?? "").replace("http://", ""),
      hot: "127.0.0.1:1",
    })),
    members: [
      {
        workerId,
        engineUrl: `http://127.0.0.1:${spare.ports["http"] ?? 0}`,
        workerHttp: `127.0.0.1:${worker.ports["http"] ?? 0}`,
      },
    ],
    keysFile: mesh.state.file("mesh.keys"),
    blockSizeTokens: meshBlockSize,
    processes: [],
  });
  try {
    const { code, stdout } = await kvmesh(["doctor", "--state", mesh.state.path]);
    expect(code).toBe(1);
    return stdout;
  } finally {
    mesh.state.removeRun();
  }
}

describe("a worker is refused, by name and with what to do, and nobody else notices", () => {
  test("when it has the id of another engine's worker", async () => {
    const worker = await startWorker(spare, { workerId: "w0" });
    for (const line of await refusedByBoth(worker)) {
      expect(line.refusal).toBe("id_taken"); // ALREADY_EXISTS
      expect(line.reason).toContain("worker id w0 is held by the engine at");
      expect(line.reason).toContain((mesh.engineUrls[0] ?? "").replace("http://", ""));
      expect(line.reason).toContain(`127.0.0.1:${spare.ports["http"] ?? 0}`);
      expect(line.mend).toContain("workerId");
    }
    expect((await refusals()).get("already_exists")).toBeGreaterThanOrEqual(2);
    const doctor = await doctorOn(worker, "w0");
    expect(doctor).toMatch(/PROBLEM +worker +w0 is refused by 2 routers: id_taken/);
    expect(doctor).toContain("two workers share an id");
    await expectUntouched();
  });

  test("when its keys file is another mesh's", async () => {
    const keysFile = mesh.state.file("other.keys");
    createKeysFile(keysFile);
    const worker = await startWorker(spare, { keysFile });
    for (const line of await refusedByBoth(worker)) {
      expect(line.refusal).toBe("hash_seed");
      expect(line.mend).toContain("mesh.keys");
    }
    await expectUntouched();
  });

  test("when its join key is wrong", async () => {
    const keysFile = mesh.state.file("wrong-join.keys");
    createKeysFile(keysFile);
    const read = (path: string): Settings => JSON.parse(readFileSync(path, "utf8")) as Settings;
    const own = read(mesh.state.file("mesh.keys"));
    writeFileSync(keysFile, JSON.stringify({ ...own, join: read(keysFile)["join"] }));
    const worker = await startWorker(spare, { keysFile, workerId: "no-proof" });
    for (const line of await refusedByBoth(worker)) {
      expect(line.refusal).toBe("bad_proof"); // UNAUTHENTICATED
      expect(line.reason).toContain("worker no-proof has no valid join proof");
    }
    expect((await refusals()).get("unauthenticated")).toBeGreaterThanOrEqual(2);
    await expectUntouched();
  });

  test("when its engine's address lies outside the allowed ranges", async () => {
    const advertise = `127.0.0.2:${spare.ports["http"] ?? 0}`;
    const worker = await startWorker(spare, { engine: { advertise } });
    for (const line of await refusedByBoth(worker)) {
      expect(line.refusal).toBe("address_not_allowed"); // PERMISSION_DENIED
      expect(line.mend).toContain("workers.allowedCidrs");
      expect(line.reason).toContain(
        `engine address ${advertise} lies outside workers.allowedCidrs (127.0.0.1/32)`,
      );
    }
    expect((await refusals()).get("permission_denied")).toBeGreaterThanOrEqual(2);
    await expectUntouched();
  });

  test("when its engine's block size does not divide the mesh's", async () => {
    const engine = await startEngine("odd-engine", { blockSizeTokens: 24 });
    const worker = await startWorker(engine, {});
    for (const line of await refusedByBoth(worker)) {
      expect(["block_size", "incompatible"]).toContain(line.refusal);
      expect(line.reason).toMatch(/\b24\b/);
      expect(line.reason).toMatch(/\b16\b/);
    }
    await expectUntouched();
  });

  test("when it serves another model in the same pool", async () => {
    const engine = await startEngine("other-engine", { model: "other-model" });
    const worker = await startWorker(engine, {});
    for (const line of await refusedByBoth(worker)) {
      expect(line.reason).toContain("give it a pool of its own");
    }
    await expectUntouched();
  });

  test("and joins once the reason is mended", async () => {
    const worker = await startWorker(spare, { workerId: "w0" });
    await refusedByBoth(worker);
    await worker.stop(2_000);
    const mended = await startWorker(spare, { workerId: "w2" });
    await eventually(
      "both routers know it",
      async () =>
        [...(await workerViews(mesh)).values()].every((v) => v.get("w2")?.state === "ready"),
      30_000,
    );
    await mended.stop(3_000);
    await eventually("it has said goodbye", async () =>
      [...(await workerViews(mesh)).values()].every((view) => !view.has("w2")),
    );
    await expectUntouched();
  });
});

/** Status with which a server ends a stream of a method to which one empty message was sent. */
async function statusOf(address: string, method: string): Promise<StatusObject> {
  const client = new Client(address, credentials.createInsecure());
  const asIs = (bytes: Buffer): Buffer => bytes;
  try {
    return await new Promise<StatusObject>((resolve) => {
      const call = client.makeBidiStreamRequest(method, asIs, asIs, new Metadata(), {
        deadline: Date.now() + 10_000,
      });
      call.on("data", () => undefined);
      call.on("error", () => undefined);
      call.on("status", resolve);
      call.write(Buffer.alloc(0));
      call.end();
    });
  } finally {
    client.close();
  }
}

test("a router answers nothing but health to callers outside its allow-lists", async () => {
  const nobody = ["10.9.8.0/24"];
  const router = serviceProcess(mesh.state, {
    name: "closed-router",
    service: "router",
    settings: mergeSettings(settingsOf("router-0", "router"), {
      instance: "closed-router",
      hotPort: 0,
      controlPort: 0,
      httpPort: 0,
      peers: [],
      callers: {
        proxy: nobody,
        router: nobody,
        membership: nobody,
        peer: nobody,
        discovery: nobody,
      },
    }),
  });
  beside.push(router);
  await router.start();
  const hot = `127.0.0.1:${router.ports["hot"] ?? 0}`;
  const control = `127.0.0.1:${router.ports["control"] ?? 0}`;
  const guarded = [
    [hot, "envoy.service.ext_proc.v3.ExternalProcessor", "Process"],
    [hot, "envoy.service.accesslog.v3.AccessLogService", "StreamAccessLogs"],
    [control, "envoy.service.discovery.v3.AggregatedDiscoveryService", "StreamAggregatedResources"],
    [control, "kvmesh.router.v1.Router", "Explain"],
    [control, "kvmesh.router.v1.Router", "WatchTopology"],
    [control, "kvmesh.router.v1.Peer", "Sync"],
    [control, "kvmesh.worker.v1.Membership", "Join"],
  ] as const;
  for (const [address, service, method] of guarded) {
    const { code, details } = await statusOf(address, `/${service}/${method}`);
    expect({ service, method, code }).toEqual({ service, method, code: status.PERMISSION_DENIED });
    expect(details).toMatch(
      new RegExp(`^caller 127\\.0\\.0\\.1\\S* is not on the allow-list of ${service}$`),
    );
  }
  for (const address of [hot, control]) {
    expect((await statusOf(address, "/grpc.health.v1.Health/Check")).code).toBe(status.OK);
  }
  const metrics = await (
    await fetch(`http://127.0.0.1:${router.ports["http"] ?? 0}/metrics`)
  ).text();
  for (const service of new Set(guarded.map(([, name]) => name))) {
    expect(metrics).toMatch(
      new RegExp(`^kvmesh_router_callers_refused_total\\{service="${service}"\\} [1-9]`, "m"),
    );
  }
  // A worker that dials it is told of the caller list, not of engine addresses.
  const worker = await startWorker(spare, { routers: { list: [control] } });
  const refused = await eventually("the worker says that it is refused", () =>
    worker
      .logTail(200)
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line) as RefusedLine)
      .find((line) => line.event === "join_refused"),
  );
  expect(refused.refusal).toBe("caller_not_allowed");
  expect(refused.reason).toContain("caller 127.0.0.1");
  expect(refused.mend).toContain("router.callers.membership");
  // The mesh's own routers take the same caller.
  const open = await statusOf(mesh.controls[0] ?? "", "/kvmesh.router.v1.Router/Explain");
  expect(open.code).not.toBe(status.PERMISSION_DENIED);
});
