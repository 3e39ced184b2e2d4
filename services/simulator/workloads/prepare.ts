/**
 * Makes the workload files of this folder from the traces they come from:
 *
 *   node services/simulator/workloads/prepare.ts <agentic_8h_blk256.jsonl.gz> <conversation_trace.jsonl.gz>
 *
 * The same inputs give the same bytes. README.md beside this file says what each holds and why.
 */
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { preparedLines, type PreparedWorkload } from "../../shared/core/workload/prepared-file.ts";
import { scale, spreadTicks, window } from "../../shared/core/workload/transform.ts";
import { workloadFacts } from "../../shared/core/workload/workload.ts";
import { loadWorkload } from "../../shared/edge/workload-files.ts";

const minuteMs = 60_000;

/** From 7:15 on the stream runs at its own mean rate and length for an hour: 24 requests/s at 15×, 7,600 tokens. */
function agentic(path: string): PreparedWorkload {
  const stream = loadWorkload(path).workload;
  const cut = window(stream, { startMs: (7 * 60 + 15) * minuteMs, durationMs: 75 * minuteMs });
  return {
    workload: {
      ...scale(cut, 16),
      name: "agentic",
      description:
        "Coding-agent sessions as one arrival stream, 7:15 to 8:30 of 8 h, lengths and blocks / 16",
      licence: "Apache-2.0",
      source: "callanjfox/kv-cache-tester: 710 recorded sessions, started at random over 8 h",
    },
    defaults: {
      rateFactor: 15,
      workers: 4,
      kvTokensPerWorker: 112_500,
      contextTokensMax: 65_536,
    },
  };
}

function conversation(path: string): PreparedWorkload {
  const trace = loadWorkload(path).workload;
  return {
    workload: {
      ...spreadTicks(trace, { seed: 1, tickMs: 3_000 }),
      name: "conversation",
      description: "Mooncake's conversation trace, whole, arrivals spread inside its 3 s ticks",
      licence: "Apache-2.0",
      source: "kvcache-ai/Mooncake: FAST25-release/traces/conversation_trace.jsonl",
    },
    defaults: {
      rateFactor: 2,
      workers: 4,
      kvTokensPerWorker: 457_000,
      contextTokensMax: 131_072,
    },
  };
}

const [agenticPath, conversationPath] = process.argv.slice(2);
if (agenticPath === undefined || conversationPath === undefined) {
  throw new Error("usage: prepare.ts <agentic stream> <conversation trace>");
}
for (const prepared of [agentic(agenticPath), conversation(conversationPath)]) {
  const { name } = prepared.workload;
  const text = `${[...preparedLines(prepared)].join("\n")}\n`;
  const bytes = gzipSync(text, { level: 9 });
  writeFileSync(fileURLToPath(new URL(`${name}.jsonl.gz`, import.meta.url)), bytes);
  const facts = workloadFacts(prepared.workload);
  process.stdout.write(`${JSON.stringify({ name, fileBytes: bytes.length, ...facts })}\n`);
}
