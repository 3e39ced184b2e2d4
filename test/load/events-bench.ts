/**
 * Measures the way of block events: `npm run bench -- events [--seconds 3] [--members 8] [--blocks 4000000] [--json]`.
 * First from vLLM's bytes to mesh blocks in a worker's core, then from Join streams into a router process.
 */
import { parseArgs } from "node:util";
import { textTable } from "../../services/cli/core/text-table.ts";
import { describeMachine, machineFacts, shown } from "./figures.ts";
import { measureRouterEvents } from "./router-events.ts";
import { measureWorkerEvents } from "./worker-events.ts";

const options = parseArgs({
  options: {
    seconds: { type: "string", default: "3" },
    members: { type: "string", default: "8" },
    blocks: { type: "string", default: "4000000" },
    json: { type: "boolean", default: false },
  },
}).values;

const machine = machineFacts();
const worker = measureWorkerEvents(Number(options.seconds));
const router = await measureRouterEvents({
  membersCount: Number(options.members),
  blocks: Number(options.blocks),
});
const { loadAverage } = machineFacts();

function print(): void {
  const right = (title: string): { title: string; align: "right" } => ({ title, align: "right" });
  const millions = (rate: number): string => shown(rate / 1e6);
  console.log(describeMachine(machine));
  console.log(`load average after ${loadAverage.join(" ")}`);
  console.log("\nworker core, engine events of a recorded vLLM, M blocks a second");
  const columns = [
    { title: "recording" },
    ...["batches", "blocks", "decode", "generic decode", "bytes to delta"].map(right),
  ];
  const rows = worker.map((rates) => [
    rates.recording,
    rates.batches.toString(),
    rates.blocks.toString(),
    millions(rates.decodeBlocksPerSecond),
    millions(rates.genericDecodeBlocksPerSecond),
    millions(rates.wholeBlocksPerSecond),
  ]);
  for (const line of textTable(columns, rows)) console.log(line);
  console.log(`\nrouter process, deltas of ${router.members} members over Join streams`);
  const routerColumns = [
    right("blocks a delta"),
    { title: "kind" },
    ...["blocks", "M blocks/s", "router CPU ns a block"].map(right),
  ];
  const routerRows = router.rates.map((rates) => [
    rates.blocksPerDelta.toString(),
    rates.kind,
    rates.blocks.toString(),
    millions(rates.blocksPerSecond),
    shown(rates.cpuNsPerBlock),
  ]);
  for (const line of textTable(routerColumns, routerRows)) console.log(line);
  console.log(`router: resident ${Math.round(router.residentBytes / 1e6)} MB`);
}

if (options.json) {
  const report = { bench: "events", machine, loadAverageAfter: loadAverage, worker, router };
  console.log(JSON.stringify(report, undefined, 2));
} else print();
