import type { Decision, WatchTopologyResponse } from "../../shared/gen/kvmesh/router/v1/router.ts";
import { formatCount, formatMs, formatRatio, textTable, type Column } from "./text-table.ts";

/** Size of the terminal, characters. */
export interface TerminalSize {
  readonly columns: number;
  readonly rows: number;
}

/** Decisions kept for the live view. */
const decisionsMax = 200;

const right = (title: string): Column => ({ title, align: "right" });

/** What `top` shows: the last topology and the last decisions, bounded. Deterministic. */
export class TopModel {
  #topology: WatchTopologyResponse | undefined;
  #decisions: Decision[] = [];
  readonly #times: number[] = [];
  #skipped = 0n;

  /** The topology changed. */
  topology(topology: WatchTopologyResponse): void {
    this.#topology = topology;
  }

  /** A decision was made; `skipped` were made before it and left out by the router. */
  decided(decision: Decision, skipped: bigint, nowMs: number): void {
    this.#decisions.unshift(decision);
    if (this.#decisions.length > decisionsMax)
      this.#decisions = this.#decisions.slice(0, decisionsMax);
    this.#times.push(nowMs);
    while (this.#times.length > 10_000) this.#times.shift();
    this.#skipped += skipped;
  }

  /** Whether anything has been heard. */
  get isEmpty(): boolean {
    return this.#topology === undefined;
  }

  /** The screen as lines, at most `size.rows` of `size.columns` characters. */
  lines(size: TerminalSize, nowMs: number): string[] {
    const topology = this.#topology;
    if (topology === undefined) return ["waiting for a router…"];
    const lines = [
      this.#summary(topology, nowMs),
      "",
      ...workerLines(topology),
      ...relayLines(topology),
      "",
      ...decisionLines(this.#decisions.slice(0, Math.max(3, size.rows))),
    ];
    return lines.slice(0, size.rows).map((line) => line.slice(0, size.columns));
  }

  #summary(topology: WatchTopologyResponse, nowMs: number): string {
    while (this.#times[0] !== undefined && nowMs - this.#times[0] > 5_000) this.#times.shift();
    const rate = (this.#times.length / 5).toFixed(1);
    const routers = topology.routers
      .map((router) => `${router.instance} ${router.state}`)
      .join(", ");
    const pools = topology.pools.map((pool) => `${pool.id}: ${pool.policy}`).join(", ");
    const skipped = this.#skipped === 0n ? "" : `  ${formatCount(this.#skipped)} not shown`;
    return `kvmesh top  ${rate} decisions/s${skipped}  ${routers}  ${pools}`;
  }
}

function workerLines(topology: WatchTopologyResponse): string[] {
  const columns: Column[] = [
    { title: "worker" },
    { title: "role" },
    { title: "state" },
    right("open"),
    right("run"),
    right("wait"),
    { title: "KV use" },
    right("hits"),
    right("blocks"),
    right("step"),
  ];
  const rows = topology.pools.flatMap((pool) =>
    pool.workers.map((worker) => [
      worker.workerId,
      worker.role,
      worker.state,
      formatCount(worker.openRequests),
      formatCount(worker.running),
      formatCount(worker.waiting),
      `${bar(worker.kvUsageRatio, 16)} ${formatRatio(worker.kvUsageRatio).padStart(7)}`,
      formatRatio(worker.hitRatio),
      formatCount(worker.blocks),
      formatMs(worker.decodeStepMs),
    ]),
  );
  return rows.length === 0 ? ["no worker has joined"] : textTable(columns, rows);
}

/** Relays in one line; nothing where there are none. */
function relayLines({ relays }: WatchTopologyResponse): string[] {
  if (relays.length === 0) return [];
  const each = relays.map(
    ({ instance, state, openRequests }) =>
      `${instance} ${state}, ${formatCount(openRequests)} open`,
  );
  return [`relays: ${each.join("; ")}`];
}

/** A share as a bar of `width` characters. */
export function bar(ratio: number, width: number): string {
  const filled = Number.isFinite(ratio) ? Math.round(Math.min(1, Math.max(0, ratio)) * width) : 0;
  return "█".repeat(filled) + "·".repeat(width - filled);
}

function decisionLines(decisions: readonly Decision[]): string[] {
  if (decisions.length === 0) return ["no decision yet"];
  const columns: Column[] = [
    { title: "decision" },
    { title: "worker" },
    right("prompt"),
    right("matched"),
    right("cost"),
    right("margin"),
    right("TTFT predicted"),
    right("took"),
  ];
  const rows = decisions.map((decision) => {
    const chosen = decision.candidates.find((one) => one.workerId === decision.workerId);
    return [
      decision.id,
      decision.workerId === "" ? decision.errorCode : decision.workerId,
      formatCount(decision.promptTokens),
      formatCount(chosen?.matchedTokens ?? 0),
      formatMs(chosen?.costMs ?? Number.NaN),
      formatMs(decision.marginMs),
      formatMs(chosen?.predictedTtftMs ?? Number.NaN),
      `${decision.decideUs.toFixed(0)} µs`,
    ];
  });
  return textTable(columns, rows);
}
