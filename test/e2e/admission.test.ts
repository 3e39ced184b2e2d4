import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startMesh, type ChatAnswer, type TestMesh } from "../support/mesh.ts";
import { metricOf, untilBooksClosed } from "../support/router-books.ts";

/** A prompt of about 1,000 tokens that no other request begins with. */
function prompt(i: number): string {
  return `Request number ${String(i)}. ${"Tell the story of the lighthouse again. ".repeat(120)}`;
}

const answerTokens = 60;

describe.each(["buffered", "duplex"] as const)("requests that wait, %s", (bodyMode) => {
  let mesh: TestMesh;
  beforeAll(async () => {
    mesh = await startMesh({
      bodyMode,
      engines: 1,
      settings: {
        // An engine that takes real time, and a router that sends it four requests at once.
        engine: { speedup: 1 },
        router: {
          admission: {
            classes: [
              { name: "standard", waitMsMax: 20_000 },
              { name: "urgent", priority: 10, waitMsMax: 20_000 },
              { name: "spare", priority: -10, waitMsMax: 0 },
            ],
            tenants: { capped: { requestsPerSecond: 0.2 } },
            burstMs: 60_000,
            countMax: 16,
            tenantShareMax: 1,
            worker: { openMax: 4 },
          },
        },
      },
    });
  });
  afterAll(async () => {
    await mesh.stop();
  });

  const ask = (i: number, headers: Record<string, string> = {}): Promise<ChatAnswer> =>
    mesh.chat({
      content: prompt(i),
      maxTokens: answerTokens,
      url: mesh.trustedUrl,
      headers,
      body: { ignore_eos: true },
    });

  test("are answered when their turn comes, past Envoy's message timer, and never unplaced", async () => {
    const startedAt = performance.now();
    const answers = await Promise.all(Array.from({ length: 14 }, (_, i) => ask(i)));
    expect(answers.map((a) => a.status)).toEqual(answers.map(() => 200));
    // Fourteen in turns of four take longer than the half second after which Envoy gives a router up.
    expect(performance.now() - startedAt).toBeGreaterThan(1_000);
    await untilBooksClosed(mesh);
    const http = mesh.routerHttp[0] ?? "";
    expect(await metricOf(http, "kvmesh_router_admission_wait_seconds_count")).toBeGreaterThan(5);
    expect(await metricOf(http, "kvmesh_router_unpicked_total")).toBe(0);
  });

  test("go behind a higher priority that comes later", async () => {
    const order: string[] = [];
    const note = (name: string) => (answer: ChatAnswer) => {
      expect(answer.status).toBe(200);
      order.push(name);
    };
    const first = Array.from({ length: 10 }, (_, i) => ask(100 + i).then(note("standard")));
    await new Promise((resolve) => setTimeout(resolve, 150));
    const urgent = ask(200, { "x-kvmesh-priority": "urgent" }).then(note("urgent"));
    await Promise.all([...first, urgent]);
    // Four run already; the urgent one is next.
    expect(order.indexOf("urgent")).toBeLessThan(8);
  });

  test("are refused with reason and time when they cannot wait, or their tenant is over its rate", async () => {
    const busy = Array.from({ length: 6 }, (_, i) => ask(300 + i));
    await new Promise((resolve) => setTimeout(resolve, 150));
    const startedAt = performance.now();
    const spare = await ask(400, { "x-llm-d-inference-objective": "spare" });
    expect(performance.now() - startedAt).toBeLessThan(1_000);
    expect(spare.status).toBe(503);
    expect(spare.headers.get("x-kvmesh-shed-reason")).toBe("sheddable");
    expect(Number(spare.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
    expect(Number(spare.headers.get("retry-after-ms"))).toBeGreaterThanOrEqual(1_000);

    const capped = [
      await ask(500, { "x-kvmesh-tenant": "capped" }),
      await ask(501, { "x-kvmesh-tenant": "capped" }),
    ];
    expect(capped.map((a) => a.status)).toEqual([200, 429]);
    expect(capped[1]?.headers.get("x-kvmesh-shed-reason")).toBe("tenant_rate");
    expect(capped[1]?.text).toContain("rate_limit_error");
    // Nobody on the public listener can say who he is.
    const forged = await mesh.chat({
      content: prompt(502),
      headers: { "x-kvmesh-tenant": "capped" },
    });
    expect(forged.status).toBe(200);
    await Promise.all(busy);
    const http = mesh.routerHttp[0] ?? "";
    const labels = { class: "spare", reason: "sheddable" };
    expect(await metricOf(http, "kvmesh_router_shed_total", labels)).toBe(1);
  });

  test("beyond the queue's length are refused at once", async () => {
    const answers = await Promise.all(Array.from({ length: 30 }, (_, i) => ask(600 + i)));
    const refused = answers.filter((a) => a.status !== 200);
    expect(refused.length).toBeGreaterThan(5);
    for (const { status, headers } of refused) {
      expect([429, 503]).toContain(status);
      expect(headers.get("x-kvmesh-shed-reason")).toMatch(/queue_full|tenant_queue/);
    }
    await untilBooksClosed(mesh);
  });

  test("leave the queue with their client", async () => {
    const busy = Array.from({ length: 5 }, (_, i) => ask(700 + i));
    await new Promise((resolve) => setTimeout(resolve, 100));
    const abort = new AbortController();
    const gone = mesh
      .chat({ content: prompt(800), maxTokens: answerTokens, signal: abort.signal })
      .catch((error: unknown) => error);
    await new Promise((resolve) => setTimeout(resolve, 100));
    abort.abort();
    expect(await gone).toBeInstanceOf(Error);
    await Promise.all(busy);
    await untilBooksClosed(mesh);
    const http = mesh.routerHttp[0] ?? "";
    expect(await metricOf(http, "kvmesh_router_admission_waiting")).toBe(0);
  });
});
