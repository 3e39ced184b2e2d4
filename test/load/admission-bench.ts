/**
 * Offers a virtual fleet several times what it can give: `npm run bench -- admission [--minutes 10] [--factor 10]
 * [--routers 1]`. Production routers with admission on virtual time, simulated engines; the same options give the same
 * figures on every machine. Exits with 1 when a figure misses its goal.
 */
import { parseArgs } from "node:util";
import { admissionDefaults } from "../../services/router/core/admission/options.ts";
import {
  overloadFigures,
  runOverload,
  type OverloadFigures,
  type OverloadOptions,
} from "../../services/simulator/core/fleet/overload-run.ts";
import { shown } from "./figures.ts";

const options = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    factor: { type: "string", default: "10" },
    routers: { type: "string", default: "1" },
    seed: { type: "string", default: "1" },
    json: { type: "boolean", default: false },
  },
}).values;
const minutes = Number(options.minutes);
const factor = Number(options.factor);
const routers = Number(options.routers);
for (const [name, value] of Object.entries({ minutes, factor, routers })) {
  if (!(value > 0)) throw new RangeError(`--${name} must be above 0`);
}

/** Two engines and prompts of 8,000 tokens: about 19 answers a second is all that they can give. */
const common: Omit<OverloadOptions, "tenants" | "forMs"> = {
  seed: Number(options.seed),
  engines: 2,
  routers,
  groups: 40,
  promptTokensMean: 8_000,
  outputTokensMean: 60,
};
const capacityPerSecond = 19;
const warmUpMs = 20_000;
const referenceMs = 120_000;

const anyone = (perSecond: number) => [{ name: "", priority: "", perSecond }];
const figures = (fleet: ReturnType<typeof runOverload>, forMs: number): OverloadFigures =>
  overloadFigures(fleet.records, { fromMs: warmUpMs, toMs: forMs });

const calm = figures(
  runOverload({
    ...common,
    admission: admissionDefaults,
    tenants: anyone(0.8 * capacityPerSecond),
    forMs: referenceMs,
  }),
  referenceMs,
);
// Without admission queues grow without end, but engines are never idle: that is the most that they can give.
const peak = figures(
  runOverload({ ...common, tenants: anyone(1.4 * capacityPerSecond), forMs: referenceMs }),
  referenceMs,
);

let waitingMost = 0;
let waitingBytesMost = 0;
let openMost = 0;
let accountsMost = 0;
const forMs = minutes * 60_000;
const fleet = runOverload(
  {
    ...common,
    admission: admissionDefaults,
    tenants: anyone(factor * capacityPerSecond),
    forMs,
  },
  (running) => {
    for (const { core } of running.routers) {
      for (const { admission } of core.gates.values()) {
        waitingMost = Math.max(waitingMost, admission.waitingCount);
        waitingBytesMost = Math.max(waitingBytesMost, admission.queue.bytes);
        accountsMost = Math.max(accountsMost, admission.queue.flowCount);
      }
      openMost = Math.max(openMost, core.book.openCount);
    }
  },
);
const loaded = figures(fleet, forMs);
const undecided = fleet.records.filter((r) => r.endings !== 1).length;

interface Row {
  readonly name: string;
  readonly value: number;
  /** What it must be; absent for facts. */
  readonly most?: number;
  readonly least?: number;
}

const rows: Row[] = [
  { name: "requests offered", value: loaded.arrived },
  { name: "answered", value: loaded.answered },
  { name: "refused", value: loaded.refused },
  { name: "undecided or decided twice", value: undecided, most: 0 },
  { name: "goodput, answers a second", value: loaded.goodputPerSecond },
  {
    name: "goodput / peak",
    value: loaded.goodputPerSecond / peak.goodputPerSecond,
    least: 0.95,
  },
  { name: "TTFT p99 at 80 % load, ms", value: calm.ttftMsP99 },
  { name: "TTFT p99 of admitted, ms", value: loaded.ttftMsP99 },
  { name: "TTFT p99 / that at 80 %", value: loaded.ttftMsP99 / calm.ttftMsP99, most: 1.5 },
  { name: "refusals answered p99, ms", value: loaded.refusalMsP99, most: 50 },
  { name: "longest wait, ms", value: loaded.waitMsMax, most: 5_000 },
  // A burst may wait for its longest time before the class counts as overloaded.
  { name: "most requests waiting", value: waitingMost, most: admissionDefaults.countMax },
  { name: "most bytes waiting", value: waitingBytesMost, most: admissionDefaults.bytesMax },
  { name: "most requests open", value: openMost },
  { name: "most accounts of tenants", value: accountsMost, most: admissionDefaults.tenantsMax },
];
const isMet = ({ value, least = -Infinity, most = Infinity }: Row): boolean =>
  value >= least && value <= most;

if (options.json) {
  console.log(JSON.stringify({ minutes, factor, routers, seed: common.seed, rows }, undefined, 2));
} else {
  console.log(
    `${String(factor)} times what ${String(common.engines)} engines can give, for ${String(minutes)} min of virtual time, ` +
      `${String(routers)} router(s)\n`,
  );
  for (const row of rows) {
    const { least, most } = row;
    const goal =
      least !== undefined ? `≥ ${String(least)}` : most === undefined ? "" : `≤ ${String(most)}`;
    const verdict = goal === "" ? "" : isMet(row) ? "met" : "SHORT";
    console.log(
      `${row.name.padEnd(30)}${shown(row.value).padStart(12)}  ${goal.padEnd(14)}${verdict}`,
    );
  }
}
if (!rows.every(isMet)) process.exitCode = 1;
