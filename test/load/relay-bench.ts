// What a relay costs: CPU for each token and each request, memory for each open stream, added latency, beside a bare
// node:http pipe of the same streams. Engine, relay (or pipe) and clients run in processes of their own.
//
//   node test/load/relay-bench.ts [--streams 1000] [--rate 4] [--seconds 8] [--only pair,guarded,pipe]
import { fork, type ChildProcess } from "node:child_process";
import { createHash, createHmac, randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, request as httpRequest, type ServerResponse } from "node:http";
import { connect, type AddressInfo, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { pino } from "pino";
import { RelayConfig } from "../../services/relay/config.ts";
import { startRelay } from "../../services/relay/edge/relay.ts";
import type { PlacementLeg } from "../../services/shared/core/placement-token/placement.ts";
import { signPlacement } from "../../services/shared/core/placement-token/placement-token.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { realClock } from "../../services/shared/edge/clock.ts";

const subjects = ["pipe", "pair", "guarded"] as const;
type Subject = (typeof subjects)[number];

/** What a process is asked, and what it answers. */
type Message =
  | { readonly kind: "ready"; readonly port: number }
  | { readonly kind: "measure" }
  | { readonly kind: "figures"; readonly cpuUs: number; readonly heldBytes: number }
  | { readonly kind: "opened" }
  | { readonly kind: "window"; readonly tokens: number; readonly latencyMs: readonly number[] };

const requestBody = JSON.stringify({
  model: "m",
  prompt:
    "Tell me a story about a sky that was blue for so long that nobody looked at it any more.",
  max_tokens: 100_000,
  stream: true,
});

function tell(message: Message): void {
  process.send?.(message);
}

/** Streams tokens to every open request at one rate; each token carries the time at which it was written. */
function runEngine(rate: number): void {
  const open = new Set<ServerResponse>();
  let count = 0;
  const prompt = '"prompt_token_ids":[1,2,3,4,5,6,7,8]';
  const server = createServer((message, response) => {
    const parts: Buffer[] = [];
    message.on("data", (part: Buffer) => parts.push(part));
    message.on("end", () => {
      const body = Buffer.concat(parts).toString();
      if (body.includes('"do_remote_decode":true')) {
        response.writeHead(200, { "content-type": "application/json" });
        response.end(
          '{"choices":[{"index":0,"text":"x"}],"usage":{"prompt_tokens":8},"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[[1,2]],"remote_request_id":"r","remote_host":"127.0.0.1","remote_port":5600}}',
        );
        return;
      }
      response.writeHead(200, { "content-type": "text/event-stream" });
      const ids = body.includes("return_token_ids");
      response.write(chunkOf(ids, ids ? `,${prompt}` : ""));
      open.add(response);
      Object.assign(response, { tellsIds: ids });
    });
    response.on("close", () => open.delete(response));
  });
  const chunkOf = (ids: boolean, more = ""): string =>
    `data: {"id":"cmpl-1f2e3d4c5b6a","object":"text_completion","created":1790000000,"model":"Qwen/Qwen3-32B","choices":[{"index":0,"text":" t${performance.timeOrigin + performance.now()} ","logprobs":null,"finish_reason":null,"stop_reason":null${more}${ids ? `,"token_ids":[${String(count % 50_000)}]` : ""}}],"usage":null}\n\n`;
  // Streams are served in turns, so that tokens are spread over the time as those of many engines are.
  const slices = 50;
  let slice = 0;
  setInterval(
    () => {
      let index = 0;
      for (const response of open) {
        if (index++ % slices !== slice) continue;
        count++;
        response.write(chunkOf("tellsIds" in response && response.tellsIds === true));
      }
      slice = (slice + 1) % slices;
    },
    1_000 / rate / slices,
  );
  server.listen(0, "127.0.0.1", 8_192, () => {
    tell({ kind: "ready", port: (server.address() as AddressInfo).port });
  });
}

/** A proxy that is nothing but node:http. */
function runPipe(enginePort: number): void {
  const server = createServer((message, response) => {
    const outgoing = httpRequest(
      { host: "127.0.0.1", port: enginePort, path: message.url, method: "POST", agent: false },
      (answer) => {
        response.writeHead(answer.statusCode ?? 502, { "content-type": "text/event-stream" });
        answer.pipe(response);
      },
    );
    outgoing.on("error", () => response.destroy());
    response.on("close", () => outgoing.destroy());
    message.pipe(outgoing);
  });
  server.listen(0, "127.0.0.1", 8_192, () => {
    tell({ kind: "ready", port: (server.address() as AddressInfo).port });
  });
}

async function runRelay(keysFile: string): Promise<void> {
  const config = RelayConfig.parse({
    logLevel: "silent",
    h2Port: 0,
    httpPort: 0,
    metricsPort: 0,
    keysFile,
    routers: { list: [] },
    engines: { legsMax: 100_000, handoffTokensMax: 1_000_000_000 },
  });
  const relay = await startRelay(config, {
    log: pino({ level: "silent" }),
    clock: realClock,
    random: new SeededRandom(1),
  });
  tell({ kind: "ready", port: relay.httpPort });
}

/** Opens streams, then counts tokens and their age for a while. */
function runClients(options: {
  readonly port: number;
  readonly streams: number;
  readonly seconds: number;
  readonly token: string;
}): void {
  const { port, streams, seconds, token } = options;
  const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-kvmesh-placement: ${token}\r\ncontent-length: ${String(Buffer.byteLength(requestBody))}\r\n\r\n${requestBody}`;
  const sockets: Socket[] = [];
  const latencyMs: number[] = [];
  let tokens = 0;
  let answered = 0;
  let isCounting = false;
  const mark = Buffer.from('"text":" t');
  const open = (): void => {
    const socket = connect(port, "127.0.0.1", () => socket.write(head));
    sockets.push(socket);
    let isAnswered = false;
    socket.on("error", (error) => {
      throw error;
    });
    socket.on("data", (chunk: Buffer) => {
      if (!isAnswered) {
        isAnswered = true;
        if (!chunk.includes(" 200 ")) throw new Error(chunk.toString());
        if (++answered === streams) tell({ kind: "opened" });
        else if (sockets.length < streams) open();
      }
      if (!isCounting) return;
      const now = performance.timeOrigin + performance.now();
      for (let at = chunk.indexOf(mark); at >= 0; at = chunk.indexOf(mark, at + 1)) {
        tokens++;
        if (tokens % 16 === 0) {
          latencyMs.push(now - Number(chunk.toString("latin1", at + 10, at + 27).split(" ")[0]));
        }
      }
    });
  };
  for (let i = 0; i < Math.min(64, streams); i++) open();
  process.on("message", () => {
    isCounting = true;
    setTimeout(() => {
      isCounting = false;
      tell({ kind: "window", tokens, latencyMs });
    }, seconds * 1_000);
  });
}

function figures(): void {
  process.on("message", (message: Message) => {
    if (message.kind !== "measure") return;
    const { user, system } = process.cpuUsage();
    // What is reachable, without the room that the heap keeps for its next round.
    globalThis.gc?.();
    const { heapUsed, external } = process.memoryUsage();
    tell({ kind: "figures", cpuUs: user + system, heldBytes: heapUsed + external });
  });
}

function start(role: string, ...words: readonly string[]): ChildProcess {
  return fork(import.meta.filename, ["--role", role, "--words", JSON.stringify(words)], {
    execArgv: ["--expose-gc"],
  });
}

function hear<K extends Message["kind"]>(
  child: ChildProcess,
  kind: K,
): Promise<Extract<Message, { kind: K }>> {
  return new Promise((resolve, reject) => {
    const onMessage = (message: Message): void => {
      if (message.kind !== kind) return;
      child.off("message", onMessage);
      resolve(message as Extract<Message, { kind: K }>);
    };
    child.on("message", onMessage);
    child.once("exit", (code) => {
      reject(new Error(`${kind}: process ended with ${String(code)}`));
    });
  });
}

async function measure(child: ChildProcess): Promise<Extract<Message, { kind: "figures" }>> {
  const heard = hear(child, "figures");
  child.send({ kind: "measure" });
  return heard;
}

interface Result {
  readonly tokens: number;
  readonly cpuPerTokenUs: number;
  readonly cpuPerRequestUs: number;
  readonly bytesPerStream: number;
  readonly latencyP50Ms: number;
  readonly latencyP99Ms: number;
}

async function run(
  subject: Subject,
  options: { readonly streams: number; readonly rate: number; readonly seconds: number },
): Promise<Result> {
  const folder = mkdtempSync(join(tmpdir(), "kvmesh-relay-bench-"));
  const keysFile = join(folder, "mesh.keys");
  const key = randomBytes(32).toString("hex");
  const list = [{ id: "k", key }];
  writeFileSync(
    keysFile,
    JSON.stringify({ hashSeed: key, placement: list, tenantSalt: list, resume: list, join: list }),
    { mode: 0o600 },
  );
  const children: ChildProcess[] = [];
  try {
    const engine = start("engine", String(options.rate));
    const prefill = start("engine", "1");
    children.push(engine, prefill);
    const [{ port: enginePort }, { port: prefillPort }] = await Promise.all([
      hear(engine, "ready"),
      hear(prefill, "ready"),
    ]);
    const relay = subject === "pipe" ? start("pipe", String(enginePort)) : start("relay", keysFile);
    children.push(relay);
    const { port } = await hear(relay, "ready");
    const leg = (role: PlacementLeg["role"], enginePort: number): PlacementLeg => ({
      role,
      workerId: `w-${String(enginePort)}`,
      address: `127.0.0.1:${String(enginePort)}`,
      workerStartMs: 1,
      engineLife: 1,
      engine: "vllm",
      bootstrap: "",
    });
    const issuedUnixMs = Date.now();
    const token = signPlacement(
      {
        decisionId: "router-0.1.1",
        router: "router-0",
        legs:
          subject === "guarded"
            ? [leg("whole", enginePort)]
            : [leg("prefill", prefillPort), leg("decode", enginePort)],
        bodySha256: createHash("sha256").update(requestBody).digest(),
        model: "m",
        pool: "default",
        tenant: "",
        salted: false,
        ...(subject === "guarded"
          ? { guard: { freezeItlMultiple: 100, freezeMsMin: 20_000, migrationsMax: 3 } }
          : {}),
        forecast: {
          promptTokens: 8,
          cachedTokens: 0,
          prefillMs: 1,
          transferMs: 1,
          transferBytes: 1,
          ttftMs: 2,
          itlMs: 250,
        },
        traceparent: "",
        issuedUnixMs,
        expiresUnixMs: issuedUnixMs + 30_000,
      },
      {
        id: "k",
        mac: (message) => createHmac("sha256", Buffer.from(key, "hex")).update(message).digest(),
      },
    );
    const before = await measure(relay);
    const clients = start("clients", JSON.stringify({ ...options, port, token }));
    children.push(clients);
    await hear(clients, "opened");
    await realClock.sleep(1_500);
    const opened = await measure(relay);
    const heard = hear(clients, "window");
    clients.send({ kind: "measure" });
    const { tokens, latencyMs } = await heard;
    const after = await measure(relay);
    const sorted = [...latencyMs].sort((a, b) => a - b);
    const at = (share: number): number => sorted[Math.floor(share * (sorted.length - 1))] ?? 0;
    return {
      tokens,
      cpuPerTokenUs: (after.cpuUs - opened.cpuUs) / tokens,
      cpuPerRequestUs: (opened.cpuUs - before.cpuUs) / options.streams,
      bytesPerStream: (after.heldBytes - before.heldBytes) / options.streams,
      latencyP50Ms: at(0.5),
      latencyP99Ms: at(0.99),
    };
  } finally {
    for (const child of children) child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  }
}

const { values } = parseArgs({
  options: {
    streams: { type: "string", default: "1000" },
    rate: { type: "string", default: "4" },
    seconds: { type: "string", default: "8" },
    only: { type: "string", default: subjects.join(",") },
    role: { type: "string", default: "" },
    words: { type: "string", default: "[]" },
  },
});

if (values.role === "") {
  const options = {
    streams: Number(values.streams),
    rate: Number(values.rate),
    seconds: Number(values.seconds),
  };
  console.log(
    `${String(options.streams)} streams at ${String(options.rate)} tokens/s, ${String(options.seconds)} s`,
  );
  console.log(
    "subject   tokens   µs/token   × pipe   µs/request   KiB/stream   latency p50, p99 ms",
  );
  let pipeUs = 0;
  for (const subject of subjects) {
    if (!values.only.split(",").includes(subject)) continue;
    const result = await run(subject, options);
    if (subject === "pipe") pipeUs = result.cpuPerTokenUs;
    console.log(
      [
        subject.padEnd(8),
        String(result.tokens).padStart(7),
        result.cpuPerTokenUs.toFixed(1).padStart(10),
        (pipeUs === 0 ? "–" : (result.cpuPerTokenUs / pipeUs).toFixed(2)).padStart(8),
        result.cpuPerRequestUs.toFixed(0).padStart(12),
        (result.bytesPerStream / 1_024).toFixed(1).padStart(12),
        `${result.latencyP50Ms.toFixed(1)}, ${result.latencyP99Ms.toFixed(1)}`.padStart(20),
      ].join(" "),
    );
  }
} else {
  const words = JSON.parse(values.words) as string[];
  figures();
  switch (values.role) {
    case "engine":
      runEngine(Number(words[0]));
      break;
    case "pipe":
      runPipe(Number(words[0]));
      break;
    case "relay":
      await runRelay(words[0] ?? "");
      break;
    case "clients":
      runClients(JSON.parse(words[0] ?? "") as Parameters<typeof runClients>[0]);
      break;
  }
}
