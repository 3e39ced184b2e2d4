import type { Clock } from "../../shared/core/clock.ts";
import type {
  PoolState,
  RelayState,
  RouterState,
  WatchTopologyResponse,
  WorkerState,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { hitRatio } from "../core/load/counter-delta.ts";
import type { Member } from "../core/membership/member.ts";
import type { Relay } from "../core/relays/relay-roster.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { CountersOf } from "./membership-server.ts";

/** Prompt length at which the learned prefill rate is quoted, tokens. */
const rateAtTokens = 4_096;

function stateOf(member: Member): string {
  if (member.unheldSince !== undefined) return "away";
  if (!member.ready) return "not_ready";
  return member.suspect && member.streamId !== undefined ? "suspect" : "ready";
}

function workerState(
  member: Member,
  options: { core: RouterCore; clock: Clock; countersOf: CountersOf; instance: string },
): WorkerState {
  const { core, clock, countersOf, instance } = options;
  const now = clock.now();
  const counters = countersOf(member.key);
  const report = core.book.lastReport(member.key);
  const load = core.book.load(member.key, now);
  const model = core.modelOf(member.key);
  const { facts } = member;
  const held = member.streamId === undefined ? [] : [instance];
  const prefillMs = model?.prefillMs(rateAtTokens, 0) ?? 0;
  return {
    workerId: member.key,
    endpoint: member.endpoint,
    state: stateOf(member),
    workerStartMs: BigInt(member.epoch.workerStartMs),
    engineLife: BigInt(member.epoch.engineLife),
    engine: facts === undefined ? "" : `${facts.engineName} ${facts.engineVersion}`,
    models: [...member.models],
    blocks: BigInt(member.slot === undefined ? 0 : core.index.blocksOf(member.slot)),
    capacityTokens: BigInt(facts?.capacityTokens ?? 0),
    engineBlockSizeTokens: facts?.engineBlockSizeTokens ?? 0,
    openRequests: load.openRequests,
    running: report?.running ?? 0,
    waiting: report?.waiting ?? 0,
    kvUsageRatio: report?.kvUsageRatio ?? 0,
    reportAgeMs: report === undefined ? 0 : now - report.at,
    appliedSeq: BigInt(member.appliedSeq),
    resyncs: member.resyncs,
    hitRatio: counters === undefined ? 0 : hitRatio(counters),
    heldBy: [...held, ...member.heldBy].sort(),
    role: facts?.role ?? "",
    prefillTokensPerSecond: prefillMs > 0 ? (rateAtTokens * 1_000) / prefillMs : 0,
    decodeStepMs: model?.decodeStepMs(Math.max(1, load.decoding), load.decodingContextTokens) ?? 0,
    ttftErrorRatioP50: model?.errorRatioP50() ?? 0,
  };
}

function relayState(relay: Relay, instance: string): RelayState {
  const { facts, draining, unheldSince, streamId, heldBy } = relay;
  return {
    instance: facts.instance,
    h2Endpoint: facts.h2Address,
    httpEndpoint: facts.httpAddress,
    state: draining ? "draining" : unheldSince === undefined ? "attached" : "away",
    openRequests: relay.reportedOpen + relay.sinceReport,
    engines: [...facts.engines],
    heldBy: [...(streamId === undefined ? [] : [instance]), ...heldBy].sort(),
  };
}

/** The topology as this router sees it. */
export function topologyToWire(options: {
  core: RouterCore;
  clock: Clock;
  countersOf: CountersOf;
  instance: string;
  routers: RouterState[];
}): WatchTopologyResponse {
  const { core, instance, routers } = options;
  const byPool = new Map<string, Member[]>();
  for (const member of core.members.all()) {
    const list = byPool.get(member.pool) ?? [];
    list.push(member);
    byPool.set(member.pool, list);
  }
  const pools = [...byPool].map(([id, members]): PoolState => {
    members.sort((a, b) => (a.key < b.key ? -1 : 1));
    return {
      id,
      models: [...new Set(members.flatMap((m) => m.models))],
      policy: core.policyOf(id),
      workers: members.map((member) => workerState(member, options)),
      indexBlocks: BigInt(core.index.blockCount),
    };
  });
  pools.sort((a, b) => (a.id < b.id ? -1 : 1));
  const relays = core.relays.all().map((relay) => relayState(relay, instance));
  return { routerInstance: instance, pools, routers, relays };
}
