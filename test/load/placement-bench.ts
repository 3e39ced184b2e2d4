/**
 * Measures decisions of the router's core alone: `npm run bench -- placement [--members 8,64,256,1000] [--rounds 5]`.
 *
 * Every engine holds the beginning of one of 16 prompts of 100 blocks and has a few answers running; each decision takes the
 * whole way through admission, index, ranking, book and log, each request is served after some others have been
 * placed, and for every second decision one engine reports. What an engine more adds is the slope from the smallest pool.
 */
import { parseArgs } from "node:util";
import { textTable } from "../../services/cli/core/text-table.ts";
import { readHints } from "../../services/router/core/admission/request-hints.ts";
import type { Decision } from "../../services/router/core/decisions/decision.ts";
import { monoMs, workerId, type WorkerId } from "../../services/shared/core/ids.ts";
import {
  memberFacts,
  placeInput,
  promptHashes,
  routerCore,
  servedRecord,
} from "../support/router-builders.ts";
import { describeMachine, machineFacts, median, shown } from "./figures.ts";

const options = parseArgs({
  options: {
    members: { type: "string", default: "8,64,256,1000" },
    rounds: { type: "string", default: "5" },
    json: { type: "boolean", default: false },
  },
}).values;
const promptBlocks = 100;
const prompts = Array.from({ length: 16 }, (_, i) => promptHashes(i, promptBlocks));
const openPerMember = 3;
const decisionsPerRound = 4_000;
const hints = readHints(() => undefined, undefined);

/** A pool that serves at a steady rate. */
class SteadyPool {
  readonly core;
  readonly #keys: WorkerId[] = [];
  readonly #open: Decision[] = [];
  readonly #openMax: number;
  #now = 1_000;
  #count = 0;

  constructor(members: number) {
    this.core = routerCore({
      membersMax: members,
      reservationsMax: 100_000,
      decisionsMax: 10_000,
      blocksMax: 1 << 20,
    });
    this.#openMax = openPerMember * members;
    for (let i = 0; i < members; i++) this.#join(i);
  }

  /** One request is placed, and one that was placed before has been served. */
  step(): void {
    // Two requests a second and engine.
    this.#now += 500 / (this.#openMax / openPerMember);
    const blocks = promptBlocks - ((this.#count * 37) % 60);
    const prompt = prompts[this.#count++ % prompts.length] as Uint32Array;
    const hashes = prompt.subarray(0, 2 * blocks);
    const promptTokens = blocks * 16 + 9;
    const input = placeInput({ requestId: `r${this.#count.toString()}`, hashes, promptTokens });
    let placed: Decision | undefined;
    const waiting = this.core.placeInTurn(
      {
        input,
        hints,
        bytes: 4_096,
        decided: (decision) => {
          placed = decision;
        },
      },
      monoMs(this.#now),
    );
    if (placed?.outcome.kind !== "placed") {
      throw new Error(`a request was not placed (${waiting === undefined ? "refused" : "waits"})`);
    }
    this.#open.push(placed);
    if (this.#open.length > this.#openMax) this.#serve(this.#open.shift() as Decision);
    if (this.#count % 2 === 0) this.#report(this.#keys[(this.#count / 2) % this.#keys.length]);
    this.core.takeEffects();
  }

  #report(key = workerId("")): void {
    const at = monoMs(this.#now);
    const load = {
      running: openPerMember,
      waiting: 0,
      kvUsageRatio: 0.2,
      workDone: this.#count,
      at,
    };
    this.core.report(key, load, undefined);
  }

  #serve(decision: Decision): void {
    const [servedEndpoint = ""] = decision.endpoints;
    const record = { ...servedRecord(0, { ttftMs: 40, durationMs: 1_400 }), servedEndpoint };
    this.core.served(decision.id, record, monoMs(this.#now));
  }

  #join(index: number): void {
    const now = monoMs(this.#now);
    const name = index.toString().padStart(4, "0");
    const key = workerId(`w${name}`);
    const endpoint = `10.0.${(index >> 8).toString()}.${(index & 0xff).toString()}:8000`;
    this.core.admit({ ...memberFacts(index), workerId: key, endpoint }, index + 1, now);
    const snapshot = { baseSeq: 0, hashes: new Uint32Array(0), xorLo: 0, xorHi: 0, blockCount: 0 };
    this.core.snapshot(key, { ...snapshot, last: true }, now);
    const hashes = prompts[index % prompts.length] as Uint32Array;
    const stored = hashes.subarray(0, 2 * (promptBlocks - (index % 50)));
    this.core.delta(key, { seq: 1, cleared: false, stored, removed: new Uint32Array(0) }, now);
    this.#keys.push(key);
    this.#report(key);
    this.core.takeEffects();
  }
}

function roundUs(pool: SteadyPool): number {
  const startUs = process.cpuUsage().user;
  for (let i = 0; i < decisionsPerRound; i++) pool.step();
  return (process.cpuUsage().user - startUs) / decisionsPerRound;
}

const machine = machineFacts();
const sizes = options.members.split(",").map(Number);
const pools = sizes.map((members) => ({
  members,
  pool: new SteadyPool(members),
  us: [] as number[],
}));
for (const { pool } of pools) roundUs(pool);
for (let round = 0; round < Number(options.rounds); round++) {
  for (const one of pools) one.us.push(roundUs(one.pool));
}
const rows = pools.map(({ members, us }) => ({ members, cpuUsPerDecision: median(us) }));
const [smallest] = rows;
const results = rows.map((row) => ({
  ...row,
  cpuNsPerMember:
    smallest === undefined || row === smallest
      ? Number.NaN
      : ((row.cpuUsPerDecision - smallest.cpuUsPerDecision) * 1_000) /
        (row.members - smallest.members),
}));
const { loadAverage } = machineFacts();
if (options.json) {
  const report = { bench: "placement", machine, loadAverageAfter: loadAverage, pools: results };
  console.log(JSON.stringify(report, undefined, 2));
} else {
  console.log(describeMachine(machine));
  console.log(`load average after ${loadAverage.join(" ")}`);
  const columns = ["engines", "CPU µs a decision", "ns an engine more"].map((title) => ({
    title,
    align: "right" as const,
  }));
  const cells = results.map(({ members, cpuUsPerDecision, cpuNsPerMember }) => [
    members.toString(),
    shown(cpuUsPerDecision),
    Number.isNaN(cpuNsPerMember) ? "" : shown(cpuNsPerMember),
  ]);
  for (const line of textTable(columns, cells)) console.log(line);
}
