import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { join } from "node:path";
import { findRoles } from "../../services/cli/core/trace-roles.ts";
import { parseTrace } from "../../services/cli/core/trace-tree.ts";
import { readError } from "../support/completion-answers.ts";
import { startEnvoy, type RunningEnvoy } from "../support/envoy.ts";
import { kvmesh } from "../support/kvmesh-command.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { sendExchange } from "../support/http-client.ts";
import { hotAddressOf, observedDecision, untilBooksClosed } from "../support/router-books.ts";

let mesh: TestMesh;
beforeAll(async () => {
  mesh = await startMesh({ routers: 2, envoy: false, console: true });
});
afterAll(async () => {
  await mesh.stop();
});

/** What the command prints for this mesh, with its listeners on free ports as two Envoys on one machine need. */
async function printed(words: readonly string[]): Promise<string> {
  const hot = ["router-0", "router-1"].flatMap((router) => [
    "--router",
    hotAddressOf(mesh, router),
  ]);
  const control = mesh.controls.flatMap((address) => ["--control", address]);
  const models = ["--model", mesh.model];
  const { code, stdout, stderr } = await kvmesh([
    ...["envoy", "print", "--full", ...hot, ...control, ...models],
    ...words,
  ]);
  expect([code, stderr]).toEqual([0, ""]);
  return stdout.replaceAll(/port_value: (8080|8081|9901)\b/g, "port_value: 0");
}

describe.each(["buffered", "duplex"] as const)("a stock Envoy from print alone, %s", (bodyMode) => {
  let envoy: RunningEnvoy;
  beforeAll(async () => {
    envoy = await startEnvoy({
      dir: join(mesh.state.path, `stock-${bodyMode}`),
      bootstrap: await printed(["--otlp", "off", ...(bodyMode === "duplex" ? ["--duplex"] : [])]),
      waitForClusters: ["pool-default"],
    });
  });
  afterAll(async () => {
    await envoy.stop();
  });
  const url = (listener: string): string =>
    `http://127.0.0.1:${String(envoy.ports[listener] ?? 0)}`;

  test("serves requests as placed, and the routers learn how they ended", async () => {
    for (let i = 0; i < 4; i++) {
      const id = `stock-${bodyMode}-${String(i)}`;
      const answer = await mesh.chat({
        url: url("public"),
        content: `Hello ${id}`,
        headers: { "x-request-id": id },
      });
      expect(answer.status).toBe(200);
      expect(answer.usage?.completion_tokens).toBeGreaterThan(0);
      const decision = await observedDecision(mesh, id);
      expect(decision).toMatchObject({ outcome: 1, promptTokens: answer.usage?.prompt_tokens });
      expect(decision.observed).toMatchObject({ servedAsPicked: true, closedBy: "access_log" });
    }
    await untilBooksClosed(mesh);
  });

  test("refuses what a router refuses, and shows the decision to trusted callers", async () => {
    const bad = await sendExchange({
      url: url("public"),
      framing: "http2",
      path: "/v1/completions",
      body: Buffer.from('{"model":"qwen3-demo","prompt":"a","cache_salt":"b"}'),
    });
    expect([bad.status, readError(bad).param]).toEqual([400, "cache_salt"]);
    const trusted = await mesh.chat({ url: url("trusted") });
    expect(trusted.headers.get("x-kvmesh-decision")).toMatch(/^router-[01]\.\d+\.\d+$/);
  });

  test("without a tracer of Envoy's the client's context is the parent", async () => {
    const [traceId, spanId] = [randomBytes(16).toString("hex"), randomBytes(8).toString("hex")];
    const answer = await mesh.chat({
      url: url("public"),
      headers: { traceparent: `00-${traceId}-${spanId}-01` },
    });
    expect(answer.status).toBe(200);
    const roles = await eventually(
      "router and engine spans are there",
      async () => {
        const response = await fetch(`${mesh.consoleUrl}/api/traces/${traceId}`);
        if (response.status !== 200) return undefined;
        const found = findRoles(parseTrace(await response.json()));
        const all = found.route && found.serve && found.engine;
        return all === undefined ? undefined : found;
      },
      40_000,
    );
    expect(roles.ingress).toBeUndefined();
    expect(roles.route?.parentSpanId).toBe(spanId);
    expect(roles.route?.links).toEqual([]);
    expect(roles.engine?.parentSpanId).toBe(spanId);
    expect(roles.serve?.parentSpanId).toBe(roles.route?.spanId);
  });
});
