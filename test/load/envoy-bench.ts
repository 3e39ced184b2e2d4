/**
 * Measures the real Envoy with the router's filter: `npm run bench -- envoy`. How and why: README.md.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { Agent, request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { extProcFilter, routerFilter } from "../../envoy/http-filters.ts";
import { defaultOptions } from "../../envoy/options.ts";
import { textTable } from "../../services/cli/core/text-table.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { startEnvoy, type RunningEnvoy } from "../support/envoy.ts";
import { ChatPrompts } from "./chat-prompts.ts";
import { BenchChild } from "./child-process.ts";
import {
  describeMachine,
  machineFacts,
  median,
  quantile,
  repositoryRoot,
  shown,
} from "./figures.ts";
import { NaturalText } from "./natural-text.ts";
import { cpuMs } from "./process-figures.ts";
import { RouterProcess } from "./router-process.ts";
import { ScriptedMembers } from "./scripted-members.ts";

const options = parseArgs({
  options: {
    sizes: { type: "string", default: "4,64,220,512" },
    rounds: { type: "string", default: "5" },
    clients: { type: "string", default: "100" },
    json: { type: "boolean", default: false },
  },
}).values;

type VariantName = "no filter" | "empty handler" | "kvmesh";

/** One Envoy, and what answers its filter. */
interface Variant {
  readonly name: VariantName;
  readonly envoy: RunningEnvoy;
  readonly port: number;
  /** The processor's process; `undefined` without a filter. */
  readonly processorPid: number | undefined;
  readonly cpuUs: Map<number, number[]>;
  readonly processorCpuUs: Map<number, number[]>;
  readonly ttftMs: number[];
}

const sizesKb = options.sizes.split(",").map(Number);
const rounds = Number(options.rounds);
const clientCount = Number(options.clients);
const concurrency = 16;
/** What a round sends of each size, MB. */
const roundMb = 8;
/** Size, engine time and requests of each client of the run that tells what the filter adds to a first token. */
const ttftSizeKb = 220;
const ttftDelayMs = 1_000;
const ttftRequestsEach = 6;

const folder = mkdtempSync(join(tmpdir(), "kvmesh-envoy-bench-"));
process.once("exit", () => {
  rmSync(folder, { recursive: true, force: true });
});

/** A request that the processor did not answer fails the benchmark instead of flattering it. */
const failClosed = {
  ...defaultOptions,
  bodyMode: "buffered",
  timeouts: { ...defaultOptions.timeouts, routerMessageMs: 10_000, routerMessageMsMax: 10_000 },
  defaultPool: { ...defaultOptions.defaultPool, failOpen: false },
} as const;

/** A static configuration with one engine; the filter is the product's own, only where it leads differs. */
function bootstrapOf(enginePort: number, processorPort: number | undefined): unknown {
  const endpoint = (port: number): unknown => ({
    endpoint: { address: { socket_address: { address: "127.0.0.1", port_value: port } } },
  });
  const cluster = (name: string, port: number): Record<string, unknown> => ({
    name,
    type: "STATIC",
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [endpoint(port)] }] },
  });
  const filters =
    processorPort === undefined ? [routerFilter()] : [extProcFilter(failClosed), routerFilter()];
  const clusters: unknown[] = [cluster("engine", enginePort)];
  if (processorPort !== undefined) {
    clusters.push({
      ...cluster("router", processorPort),
      typed_extension_protocol_options: {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
          "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
          explicit_http_config: { http2_protocol_options: {} },
        },
      },
    });
  }
  return {
    admin: { address: { socket_address: { address: "127.0.0.1", port_value: 0 } } },
    static_resources: {
      listeners: [
        {
          name: "public",
          address: { socket_address: { address: "127.0.0.1", port_value: 0 } },
          per_connection_buffer_limit_bytes: 64 * 1024 * 1024,
          filter_chains: [
            {
              filters: [
                {
                  name: "envoy.filters.network.http_connection_manager",
                  typed_config: {
                    "@type":
                      "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    stat_prefix: "public",
                    http_filters: filters,
                    route_config: {
                      virtual_hosts: [
                        {
                          name: "all",
                          domains: ["*"],
                          routes: [
                            {
                              match: { prefix: "/" },
                              route: { cluster: "engine", timeout: "30s" },
                            },
                          ],
                        },
                      ],
                    },
                  },
                },
              ],
            },
          ],
        },
      ],
      clusters,
    },
  };
}

const agent = new Agent({ keepAlive: true, maxSockets: 512 });

/** Sends one request; resolves with the time to the first byte of the answer, ms. */
function ask(port: number, body: Buffer): Promise<number> {
  return new Promise((resolve, reject) => {
    const startedAt = performance.now();
    const call = httpRequest(
      {
        host: "127.0.0.1",
        port,
        agent,
        method: "POST",
        path: "/v1/chat/completions",
        headers: { "content-type": "application/json", "content-length": body.length },
      },
      (response) => {
        const ttftMs = performance.now() - startedAt;
        let text = "";
        response.on("data", (chunk) => (text += String(chunk)));
        response.on("end", () => {
          if (response.statusCode === 200) resolve(ttftMs);
          else reject(new Error(`status ${String(response.statusCode)}: ${text}`));
        });
      },
    );
    call.on("error", reject);
    call.end(body);
  });
}

async function closedLoop(port: number, bodies: readonly Buffer[]): Promise<void> {
  const rest = bodies.values();
  const worker = async (): Promise<void> => {
    for (const body of rest) await ask(port, body);
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
}

async function referencePort(): Promise<{ child: BenchChild; port: number }> {
  const child = new BenchChild(join(import.meta.dirname, "reference-server.ts"), {
    name: "empty",
    args: ["empty"],
  });
  const { port } = await child.answer<{ readonly port: number }>("ready");
  return { child, port };
}

async function engine(delayMs: number): Promise<{ child: BenchChild; port: number }> {
  const child = new BenchChild(join(import.meta.dirname, "echo-engine-process.ts"), {
    name: "engine",
    args: [delayMs.toString()],
  });
  const { port } = await child.answer<{ readonly port: number }>("ready");
  return { child, port };
}

const router = await RouterProcess.start({ membersMax: 64 });
const members = await ScriptedMembers.join({
  count: 8,
  target: `127.0.0.1:${router.ports.control.toString()}`,
  keys: router.keys,
});
await router.untilServing();
const empty = await referencePort();
const fast = await engine(0);
const slow = await engine(ttftDelayMs);

async function variantsOn(enginePort: number, label: string): Promise<Variant[]> {
  const processors: readonly (readonly [VariantName, number | undefined, number | undefined])[] = [
    ["no filter", undefined, undefined],
    ["empty handler", empty.port, empty.child.pid],
    ["kvmesh", router.ports.hot, router.pid],
  ];
  const variants: Variant[] = [];
  for (const [name, port, pid] of processors) {
    const envoy = await startEnvoy({
      bootstrap: bootstrapOf(enginePort, port),
      dir: join(folder, `${label}-${name.replace(" ", "-")}`),
    });
    variants.push({
      name,
      envoy,
      port: envoy.ports["public"] ?? 0,
      processorPid: pid,
      cpuUs: new Map(),
      processorCpuUs: new Map(),
      ttftMs: [],
    });
  }
  return variants;
}

const text = new NaturalText(join(repositoryRoot, "node_modules"), 3);
const before = machineFacts();
const variants = await variantsOn(fast.port, "fast");
for (const sizeKb of sizesKb) {
  const source = new ChatPrompts(text, { bodyBytes: sizeKb * 1_024, seed: sizeKb });
  const count = Math.max(48, Math.min(1_000, Math.round((roundMb * 1_024) / sizeKb)));
  for (let round = -1; round < rounds; round++) {
    const bodies = Array.from({ length: count }, () => source.next().body);
    for (const { envoy, port, processorPid, cpuUs, processorCpuUs } of variants) {
      const own = (): number => (processorPid === undefined ? 0 : cpuMs(processorPid));
      const [envoyMs, processorMs] = [cpuMs(envoy.pid), own()];
      await closedLoop(port, bodies);
      if (round < 0) continue;
      const note = (map: Map<number, number[]>, usedMs: number): void => {
        map.set(sizeKb, [...(map.get(sizeKb) ?? []), (usedMs * 1_000) / count]);
      };
      note(cpuUs, cpuMs(envoy.pid) - envoyMs);
      note(processorCpuUs, own() - processorMs);
    }
  }
}
for (const { envoy } of variants) await envoy.stop();

// Clients that mostly wait for their engine: what the filter adds to a first token when nothing queues for the CPU.
const waiting = await variantsOn(slow.port, "slow");
const source = new ChatPrompts(text, { bodyBytes: ttftSizeKb * 1_024, seed: 9 });
const random = new SeededRandom(4);
for (const variant of waiting) {
  const bodies = Array.from({ length: clientCount * ttftRequestsEach }, () => source.next().body);
  const client = async (index: number): Promise<void> => {
    await sleep(random.next() * ttftDelayMs);
    for (let i = 0; i < ttftRequestsEach; i++) {
      const body = bodies[index * ttftRequestsEach + i];
      if (body !== undefined) variant.ttftMs.push((await ask(variant.port, body)) - ttftDelayMs);
    }
  };
  await Promise.all(Array.from({ length: clientCount }, (_, index) => client(index)));
  await variant.envoy.stop();
}
agent.destroy();
members.close();
await router.stop();
for (const { child } of [empty, fast, slow]) await child.stop();

const ttft = waiting.map(({ name, ttftMs }) => ({
  variant: name,
  msP50: median(ttftMs),
  msP99: quantile(ttftMs, 0.99),
}));
const result = {
  bench: "envoy",
  machine: before,
  loadAverageAfter: machineFacts().loadAverage,
  rounds,
  cpu: variants.flatMap(({ name, cpuUs, processorCpuUs }) =>
    sizesKb.map((sizeKb) => ({
      variant: name,
      sizeKb,
      envoyCpuUs: median(cpuUs.get(sizeKb) ?? []),
      processorCpuUs: median(processorCpuUs.get(sizeKb) ?? []),
    })),
  ),
  clients: clientCount,
  ttftSizeKb,
  ttft,
};

if (options.json) console.log(JSON.stringify(result, undefined, 2));
else {
  console.log(describeMachine(before));
  console.log(`load average after ${result.loadAverageAfter.join(" ")}`);
  const right = (title: string) => ({ title, align: "right" as const });
  const columns = [
    { title: "filter" },
    right("KB"),
    right("Envoy CPU µs"),
    right("handler CPU µs"),
  ];
  const rows = result.cpu.map((row) => [
    row.variant,
    row.sizeKb.toString(),
    shown(row.envoyCpuUs),
    row.variant === "no filter" ? "" : shown(row.processorCpuUs),
  ]);
  for (const line of textTable(columns, rows)) console.log(line);
  console.log(
    `\ntime to the first byte beyond the engine's ${ttftDelayMs.toString()} ms, ${clientCount.toString()} clients, ${ttftSizeKb.toString()} KB`,
  );
  const ttftRows = ttft.map((row) => [row.variant, shown(row.msP50), shown(row.msP99)]);
  for (const line of textTable([{ title: "filter" }, right("p50 ms"), right("p99 ms")], ttftRows)) {
    console.log(line);
  }
}
