/**
 * Measures what each part of a decision adds: `npm run bench -- ladder`. Processes that go one step further each are sent
 * the same prompts in turns; the last two are routers, without and with what their members tell. See README.md.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { textTable } from "../../services/cli/core/text-table.ts";
import { BenchChild } from "./child-process.ts";
import type { ExchangeMode } from "./ext-proc-messages.ts";
import { describeMachine, machineFacts, median, shown } from "./figures.ts";
import { cpuMs, residentBytes } from "./process-figures.ts";
import { ladderSteps } from "./router-ladder-decider.ts";
import { RouterLoad, type LoadTarget, type ServedPrompts } from "./router-load.ts";
import { RouterProcess } from "./router-process.ts";
import { ScriptedMembers } from "./scripted-members.ts";

const options = parseArgs({
  options: {
    steps: { type: "string", default: [...ladderSteps, "records", "whole"].join(",") },
    sizes: { type: "string", default: "4,64,220,512" },
    mode: { type: "string", default: "buffered" },
    members: { type: "string", default: "8" },
    rounds: { type: "string", default: "5" },
    warmup: { type: "string", default: "3" },
    text: { type: "string", default: "1" },
    concurrency: { type: "string", default: "16" },
    json: { type: "boolean", default: false },
  },
}).values;
const sizesKb = options.sizes.split(",").map(Number);
const mode: ExchangeMode = options.mode === "duplex" ? "duplex" : "buffered";
const concurrency = Number(options.concurrency);
const membersCount = Number(options.members);

interface Step extends LoadTarget {
  readonly pid: number;
  readonly onServed: ((prompts: ServedPrompts) => void) | undefined;
  readonly usByKb: Map<number, number[]>;
  stop(): Promise<void>;
}

async function startStep(name: string, keysFile: string): Promise<Step> {
  const child = new BenchChild(join(import.meta.dirname, "router-ladder-process.ts"), {
    name,
    args: [name, keysFile, membersCount.toString()],
  });
  const { port } = await child.answer<{ readonly port: number }>("ready");
  return {
    name,
    address: `127.0.0.1:${port.toString()}`,
    wantsRecords: false,
    pid: child.pid,
    onServed: undefined,
    usByKb: new Map(),
    stop: () => child.stop(),
  };
}

/** A whole router; its members store what they are sent when `withBlocks`. */
async function startRouter(
  name: string,
  keysFile: string | undefined,
  withBlocks: boolean,
): Promise<Step & { readonly keysFile: string }> {
  const membersMax = Math.max(64, membersCount);
  const router = await RouterProcess.start({ membersMax, keysFile });
  const target = `127.0.0.1:${router.ports.control.toString()}`;
  const members = await ScriptedMembers.join({ count: membersCount, target, keys: router.keys });
  await router.untilServing();
  return {
    name,
    address: `127.0.0.1:${router.ports.hot.toString()}`,
    wantsRecords: true,
    pid: router.pid,
    keysFile: router.keysFile,
    onServed: withBlocks
      ? (prompts) => {
          members.storeNew(prompts);
        }
      : undefined,
    usByKb: new Map(),
    stop: async () => {
      members.close();
      await router.stop();
    },
  };
}

const names = options.steps.split(",");
const whole = await startRouter("whole", undefined, true);
const steps: Step[] = [];
for (const name of names) {
  if (name === "whole") steps.push(whole);
  else if (name === "records") steps.push(await startRouter(name, whole.keysFile, false));
  else steps.push(await startStep(name, whole.keysFile));
}
const load = await RouterLoad.start(whole.keysFile);

async function runRound(counts: boolean): Promise<void> {
  for (const sizeKb of sizesKb) {
    const count = await load.prepare(sizeKb, Number(options.text));
    for (const step of steps) {
      const startMs = cpuMs(step.pid);
      const how = { mode, count, arrivals: { kind: "closed", concurrency } } as const;
      const { answered } = await load.send(step, how, step.onServed);
      const us = ((cpuMs(step.pid) - startMs) * 1_000) / answered;
      if (counts) step.usByKb.set(sizeKb, [...(step.usByKb.get(sizeKb) ?? []), us]);
    }
  }
}

const before = machineFacts();
for (let round = 0; round < Number(options.warmup); round++) await runRound(false);
for (let round = 0; round < Number(options.rounds); round++) await runRound(true);
const result = {
  bench: "ladder",
  machine: before,
  loadAverageAfter: machineFacts().loadAverage,
  mode,
  unseenShare: load.text.unseenBytes / load.text.bytes,
  textWraps: load.text.wraps,
  steps: steps.map((step) => ({
    name: step.name,
    residentBytes: residentBytes(step.pid),
    cpuUs: Object.fromEntries(
      [...step.usByKb].map(([sizeKb, us]) => [sizeKb.toString(), median(us)]),
    ),
    cpuUsByRound: Object.fromEntries([...step.usByKb].map(([sizeKb, us]) => [sizeKb, us])),
  })),
};
await load.stop();
for (const step of steps) await step.stop();
if (!steps.includes(whole)) await whole.stop();

if (options.json) console.log(JSON.stringify(result, undefined, 2));
else {
  console.log(describeMachine(result.machine));
  console.log(
    `load average after ${result.loadAverageAfter.join(" ")}; ${mode}, ${concurrency.toString()} requests at once, ` +
      `${membersCount.toString()} members, ${(100 * result.unseenShare).toFixed(0)} % of bytes unseen` +
      (result.textWraps > 0 ? `, edition ${(result.textWraps + 1).toString()} of the text` : ""),
  );
  console.log("CPU µs a request, medians of the rounds, and what each step adds\n");
  const columns = [
    { title: "step" },
    ...sizesKb.flatMap((sizeKb) =>
      [`${sizeKb.toString()} KB`, "adds"].map((title) => ({ title, align: "right" as const })),
    ),
    { title: "resident MB", align: "right" as const },
  ];
  const rows = result.steps.map(({ name, cpuUs, residentBytes: bytes }, i) => [
    name,
    ...sizesKb.flatMap((sizeKb) => {
      const us = cpuUs[sizeKb.toString()] ?? Number.NaN;
      const below = result.steps[i - 1]?.cpuUs[sizeKb.toString()] ?? 0;
      return [shown(us), Math.round(us - below).toString()];
    }),
    Math.round(bytes / 1e6).toString(),
  ]);
  for (const line of textTable(columns, rows)) console.log(line);
}
