/**
 * `node test/load/h2-bench.ts [--rounds 5] [--sizes 4,64,512] [--concurrency 32] [--megabytes 48] [--json]`: CPU per
 * `ext_proc` exchange (headers, answer, body, answer, end) of the mesh's own gRPC transport and of grpc-js, in
 * processes of their own, taking turns. The handlers do nothing, so this is the transport alone.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ExternalProcessorService } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import { BenchChild } from "./child-process.ts";
import { bodyMessages, headersMessage } from "./ext-proc-messages.ts";
import { describeMachine, machineFacts, median, shown } from "./figures.ts";
import { LeanGrpcConnection, type LeanCall } from "./lean-grpc-client.ts";
import { cpuMs } from "./process-figures.ts";

const kinds = ["lean", "grpc-js"] as const;
type Kind = (typeof kinds)[number];

const options = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    sizes: { type: "string", default: "4,64,512" },
    concurrency: { type: "string", default: "32" },
    megabytes: { type: "string", default: "48" },
    json: { type: "boolean", default: false },
    only: { type: "string" },
  },
}).values;
const rounds = Number(options.rounds);
const concurrency = Number(options.concurrency);
const connectionCount = 2;

interface Target {
  readonly child: BenchChild;
  readonly connections: readonly LeanGrpcConnection[];
}

async function start(kind: Kind): Promise<Target> {
  const child = new BenchChild(join(import.meta.dirname, "h2-bench-server.ts"), {
    name: kind,
    args: [kind],
  });
  const { port } = await child.answer<{ port: number }>("ready");
  const { path } = ExternalProcessorService.process;
  const connections = await Promise.all(
    Array.from({ length: Math.min(connectionCount, concurrency) }, () =>
      LeanGrpcConnection.open(`127.0.0.1:${port.toString()}`, path),
    ),
  );
  return { child, connections };
}

/** One exchange; rejects unless both answers came and the call ended with trailers. */
function exchange(
  connection: LeanGrpcConnection,
  first: readonly Buffer[],
  second: readonly Buffer[],
): Promise<void> {
  return new Promise((resolve, reject) => {
    let answers = 0;
    const call: LeanCall = connection.call({
      onMessage: () => {
        if (++answers === 1) connection.send(call, second, true);
      },
      onEnd: (error) => {
        if (error === undefined && answers === 2) resolve();
        else reject(new Error(error ?? `${answers.toString()} answers`));
      },
    });
    connection.send(call, first, false);
  });
}

/** CPU µs per exchange of the server's process. */
async function measure(target: Target, bytes: number, count: number): Promise<number> {
  const first = headersMessage("buffered", bytes, "bench-1");
  const second = bodyMessages(Buffer.alloc(bytes, 0x61), bytes);
  const run = async (exchanges: number): Promise<void> => {
    let left = exchanges;
    await Promise.all(
      Array.from({ length: concurrency }, async (_, i) => {
        const connection = target.connections[i % target.connections.length] as LeanGrpcConnection;
        while (left-- > 0) await exchange(connection, first, second);
      }),
    );
  };
  await run(Math.ceil(count / 4));
  const before = cpuMs(target.child.pid);
  await run(count);
  return ((cpuMs(target.child.pid) - before) * 1_000) / count;
}

const machine = machineFacts();
const sizes = options.sizes.split(",").map(Number);
const used = kinds.filter((kind) => options.only === undefined || options.only === kind);
const targets = new Map<Kind, Target>();
for (const kind of used) targets.set(kind, await start(kind));
const figures = new Map<string, number[]>();
for (let round = 0; round < rounds; round++) {
  for (const size of sizes) {
    const bytes = size * 1_024;
    const count = Math.max(
      100,
      Math.min(10_000, Math.round((Number(options.megabytes) << 20) / bytes)),
    );
    for (const [kind, target] of targets) {
      const key = `${kind} ${size}`;
      const us = await measure(target, bytes, count);
      figures.set(key, [...(figures.get(key) ?? []), us]);
    }
  }
}
for (const { child, connections } of targets.values()) {
  for (const connection of connections) connection.close();
  await child.stop();
}

const rows = sizes.map((size) => {
  const lean = median(figures.get(`lean ${size}`) ?? []);
  const grpcJs = median(figures.get(`grpc-js ${size}`) ?? []);
  return { sizeKb: size, leanUs: lean, grpcJsUs: grpcJs, ratio: grpcJs / lean };
});
if (options.json) console.log(JSON.stringify({ machine, rounds, concurrency, rows }));
else {
  console.log(describeMachine(machine));
  console.log(`CPU µs per exchange, median of ${rounds} rounds, ${concurrency} under way`);
  for (const { sizeKb, leanUs, grpcJsUs, ratio } of rows) {
    console.log(
      `${sizeKb.toString().padStart(4)} KB  own ${shown(leanUs)}  grpc-js ${shown(grpcJsUs)}  ${shown(ratio)}×`,
    );
  }
}
