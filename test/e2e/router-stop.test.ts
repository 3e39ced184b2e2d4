import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Client, credentials } from "@grpc/grpc-js";
import type { ManagedProcess } from "../../services/cli/edge/up/launcher.ts";
import { StateFolder } from "../../services/cli/edge/up/state-folder.ts";
import { eventually } from "../support/mesh.ts";
import { serviceProcess } from "../support/service-process.ts";

let folder: string;
let router: ManagedProcess;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-router-stop-"));
});

async function startRouter(drainServeMs: number): Promise<void> {
  const state = new StateFolder(folder);
  const keysFile = state.prepare("");
  const ports = { hotPort: 0, controlPort: 0, httpPort: 0 };
  const drainMsMax = drainServeMs + 9_000;
  router = serviceProcess(state, {
    name: "router",
    service: "router",
    settings: { instance: "alone", ...ports, keysFile, drainServeMs, drainMsMax },
  });
  await router.start();
}

afterEach(async () => {
  await router.stop(5_000);
  rmSync(folder, { recursive: true, force: true });
});

/** Asks the health service of a port, as Envoy does; resolves with the gRPC status code. */
async function checkHealth(port: number): Promise<number> {
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure());
  const asIs = (bytes: Buffer): Buffer => bytes;
  try {
    return await new Promise((resolve) => {
      const deadline = Date.now() + 5_000;
      const path = "/grpc.health.v1.Health/Check";
      client.makeUnaryRequest(path, asIs, asIs, Buffer.alloc(0), { deadline }, (error) => {
        resolve(error?.code ?? 0);
      });
    });
  } finally {
    client.close();
  }
}

/** Ends the router with SIGTERM and says how long it took, ms. */
async function stopTime(): Promise<number> {
  const from = performance.now();
  router.kill("SIGTERM");
  await eventually("the router is gone", () => !router.running, 30_000);
  return performance.now() - from;
}

test("a router that no Envoy asks does not serve on", async () => {
  const drainServeMs = 30_000;
  await startRouter(drainServeMs);
  expect(await checkHealth(router.ports["control"] ?? 0)).toBe(0);
  // Far from the time that it would serve on, however busy the machine.
  expect(await stopTime()).toBeLessThan(drainServeMs / 2);
});

test("a router whose health an Envoy checks answers on until the checks have failed", async () => {
  const drainServeMs = 3_000;
  await startRouter(drainServeMs);
  expect(await checkHealth(router.ports["hot"] ?? 0)).toBe(0);
  expect(await stopTime()).toBeGreaterThanOrEqual(drainServeMs);
});
