import type {
  RelayState,
  WatchTopologyResponse,
  WorkerState,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { toJson } from "./explain-view.ts";
import { formatCount, formatMs, formatRatio, textTable, type Column } from "./text-table.ts";

const right = (title: string): Column => ({ title, align: "right" });

/** Pools, workers with all their facts, relays and routers, as lines of text. */
export function workersView(topology: WatchTopologyResponse): string[] {
  const lines: string[] = [];
  for (const pool of topology.pools) {
    lines.push(
      `pool ${pool.id}  models ${pool.models.join(", ")}  policy ${pool.policy}  ${formatCount(pool.indexBlocks)} blocks in the index`,
      ...workerTable(pool.workers),
      "",
    );
  }
  if (topology.pools.length === 0) lines.push("no pool: no worker has joined", "");
  if (topology.relays.length > 0) lines.push(...relayTable(topology.relays), "");
  lines.push(
    ...textTable(
      [{ title: "router" }, { title: "state" }, { title: "epoch" }, right("heard")],
      topology.routers.map((router) => [
        router.instance,
        router.state,
        router.epoch.toString(),
        router.instance === topology.routerInstance ? "itself" : formatMs(router.heardAgeMs),
      ]),
    ),
  );
  return lines;
}

/** The same as a value for `--json`. */
export function workersJson(topology: WatchTopologyResponse): unknown {
  return toJson({ schema: 1, ...topology });
}

function relayTable(relays: readonly RelayState[]): string[] {
  return textTable(
    [
      { title: "relay" },
      { title: "HTTP/2, gRPC" },
      { title: "HTTP/1.1" },
      { title: "state" },
      right("open"),
      { title: "engines" },
      { title: "held by" },
    ],
    relays.map((relay) => [
      relay.instance,
      relay.h2Endpoint,
      relay.httpEndpoint,
      relay.state,
      formatCount(relay.openRequests),
      relay.engines.join(", "),
      relay.heldBy.length === 0 ? "nobody" : relay.heldBy.join(", "),
    ]),
  );
}

function workerTable(workers: readonly WorkerState[]): string[] {
  const columns: Column[] = [
    { title: "worker" },
    { title: "endpoint" },
    { title: "state" },
    { title: "engine" },
    { title: "role" },
    right("blocks"),
    right("KV tokens"),
    right("block"),
    right("open"),
    right("running+waiting"),
    right("KV use"),
    right("as of"),
    right("hits"),
    right("prefill tok/s"),
    right("step"),
    right("TTFT error"),
    right("resyncs"),
    { title: "held by" },
  ];
  return textTable(columns, workers.map(workerCells));
}

function workerCells(worker: WorkerState): string[] {
  return [
    worker.workerId,
    worker.endpoint,
    worker.state,
    worker.engine,
    worker.role,
    formatCount(worker.blocks),
    worker.capacityTokens === 0n ? "unknown" : formatCount(worker.capacityTokens),
    String(worker.engineBlockSizeTokens),
    formatCount(worker.openRequests),
    `${formatCount(worker.running)}+${formatCount(worker.waiting)}`,
    formatRatio(worker.kvUsageRatio),
    formatMs(worker.reportAgeMs),
    formatRatio(worker.hitRatio),
    formatCount(worker.prefillTokensPerSecond),
    formatMs(worker.decodeStepMs),
    formatRatio(worker.ttftErrorRatioP50),
    formatCount(worker.resyncs),
    worker.heldBy.length === 0 ? "nobody" : worker.heldBy.join(", "),
  ];
}
