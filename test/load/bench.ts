/**
 * Runs one benchmark, or all in turn: `npm run bench -- <name> [options]`. Without a name it lists them. Each runs
 * in a process of its own, so that none inherits another's heap or compiled code.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";

const benchmarks: Readonly<Record<string, { readonly file: string; readonly about: string }>> = {
  router: {
    file: "router-bench.ts",
    about:
      "CPU per request, decision times and memory of a router under ext_proc traffic, beside two references\n" +
      "  --members 8  --large 1000  --rounds 5  --warmup 8  --text 2 (MB)  --concurrency 16  --sizes 4,64,220,512 (KB)\n" +
      "  --modes buffered,duplex  --no-references  --no-latency  --baseline <other checkout>\n" +
      "  --profile  --top 20  --readme  --json",
  },
  ladder: {
    file: "router-ladder.ts",
    about:
      "what each part of a decision adds to the CPU of a request: transport, scan, tokens, placement, records, members\n" +
      "  --steps transport,scan,tokens,place,decide,records,whole  --sizes 4,64,220,512 (KB)  --mode buffered\n" +
      "  --members 8  --rounds 5  --warmup 3  --text 1 (MB)  --concurrency 16  --json",
  },
  envoy: {
    file: "envoy-bench.ts",
    about:
      "CPU of the real Envoy with the router's filter, and what the filter adds to a first byte\n" +
      "  --sizes 4,64,220,512 (KB)  --rounds 5  --clients 100  --json",
  },
  placement: {
    file: "placement-bench.ts",
    about:
      "CPU of a decision of the router's core, without transport and tokenizing, by size of the pool\n" +
      "  --members 8,64,256,1000  --rounds 5  --json",
  },
  idle: {
    file: "idle-bench.ts",
    about:
      "CPU of a router whose workers only report that they have nothing to do\n" +
      "  --members 1000  --interval 1000 (ms)  --rounds 5  --seconds 4  --profile  --top 20  --json",
  },
  join: {
    file: "join-bench.ts",
    about:
      "time from a router's start until it serves from a full index\n" +
      "  --members 8  --blocks 1000000  --rounds 5  --profile  --top 20  --json",
  },
  admission: {
    file: "admission-bench.ts",
    about:
      "a virtual fleet that is asked for several times what it can give: goodput, first tokens, refusals, memory\n" +
      "  --minutes 10  --factor 10  --routers 1  --seed 1  --json",
  },
  relay: {
    file: "relay-bench.ts",
    about:
      "what a relay costs a token, a request and a stream, beside a bare pipe of the same streams\n" +
      "  --streams 1000  --rate 4 (tokens/s)  --seconds 8  --only pipe,pair,guarded",
  },
  h2: {
    file: "h2-bench.ts",
    about:
      "the lean HTTP/2 server against grpc-js, CPU per exchange without a decision\n" +
      "  --rounds 5  --sizes 4,64,512 (KB)  --concurrency 32  --json",
  },
  index: {
    file: "kv-index-bench.ts",
    about:
      "lookups, block events and memory of the KV index\n" +
      "  --pairs 1000000  --workers 256  --json",
  },
  body: {
    file: "body-bench.ts",
    about:
      "chats from the bytes of a body to tokens and block hashes, beside parsing and rendering them\n" +
      "  --sizes 4,64,220,512 (KB)  --rounds 5  --json",
  },
  tokenizer: {
    file: "tokenizer-bench.ts",
    about:
      "tokenizer against the native package, MB per CPU-second\n" +
      "  --rounds 3  --corpus 62 (MB)  --sample 12  --json",
  },
  events: {
    file: "events-bench.ts",
    about:
      "blocks a second from vLLM's event bytes to mesh blocks, and from Join streams into a router's index\n" +
      "  --seconds 3  --members 8  --blocks 4000000  --json",
  },
};

async function run(file: string, options: readonly string[]): Promise<number> {
  const child = spawn(process.execPath, [join(import.meta.dirname, file), ...options], {
    stdio: "inherit",
  });
  const [code] = (await once(child, "exit")) as [number | null];
  return code ?? 1;
}

const [name, ...rest] = process.argv.slice(2);
if (name === undefined || name === "--help") {
  console.log("npm run bench -- <name> [options]\n");
  for (const [key, { about }] of Object.entries(benchmarks)) console.log(`${key}: ${about}\n`);
  console.log("all: every one with its defaults; takes --json");
} else if (name === "all") {
  for (const [key, { file }] of Object.entries(benchmarks)) {
    console.log(`——— ${key} ———`);
    const code = await run(file, rest);
    if (code !== 0) process.exitCode = code;
  }
} else {
  const known = Object.hasOwn(benchmarks, name) ? benchmarks[name] : undefined;
  if (known === undefined) {
    const names = [...Object.keys(benchmarks), "all"].join(", ");
    console.error(`there is no benchmark ${JSON.stringify(name)}; there are ${names}`);
    process.exitCode = 2;
  } else process.exitCode = await run(known.file, rest);
}
