import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { isAlive } from "../../services/cli/edge/up/launcher.ts";
import { eventually, readAccessLog, startMesh } from "../support/mesh.ts";

test("a mesh of processes serves, survives Envoy and an engine started again, and leaves nothing", async () => {
  const mesh = await startMesh({ engines: 2, routers: 2 });
  const names = ["router-0", "router-1", "engine-0", "engine-1", "worker-0", "worker-1", "envoy"];
  const pids = names.map((name) => mesh.process(name).pid ?? 0);
  try {
    const first = await mesh.chat({ maxTokens: 8 });
    expect(first.status, first.text).toBe(200);
    expect(first.usage?.completion_tokens).toBe(8);
    expect(first.content).not.toBe("");

    await mesh.process("engine-0").kill("SIGKILL");
    expect(mesh.process("engine-0").running).toBe(false);
    await mesh.process("engine-0").restart();
    await mesh.process("envoy").kill("SIGTERM");
    await mesh.process("envoy").restart();
    await mesh.untilServing();
    const whole = await mesh.chat({ stream: false, url: mesh.trustedUrl });
    expect(whole.status, mesh.logs()).toBe(200);
    expect(whole.headers.get("x-kvmesh-decision")).toMatch(/^router-[01]\.\d+\.\d+$/);
    await eventually(
      "both requests are in the access log",
      () => readAccessLog(mesh).length >= 2,
      15_000,
    );

    await mesh.restartEngines();
    await mesh.setPolicy("round-robin");
    expect((await mesh.routers.topology()).pools[0]?.policy).toBe("round-robin");
    expect((await mesh.chat()).status).toBe(200);
    pids.push(...names.map((name) => mesh.process(name).pid ?? 0));
  } finally {
    await mesh.stop();
  }
  expect(pids.filter((pid) => pid > 0 && isAlive(pid))).toEqual([]);
  expect(existsSync(mesh.state.path)).toBe(false);
});
