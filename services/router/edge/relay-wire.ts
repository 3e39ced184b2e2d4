import { MeshError } from "../../shared/core/errors.ts";
import type {
  AttachResponse,
  LegNotice as WireNotice,
  RelayHello,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import type { Member } from "../core/membership/member.ts";
import { legOutcomes } from "../../shared/core/leg-outcome.ts";
import type { LegNotice } from "../core/relays/leg-notice.ts";
import type { Relay, RelayFacts } from "../core/relays/relay-roster.ts";
import type {
  ToldEngine,
  ToldRelay,
  TopologyChange,
  TopologySnapshot,
} from "../core/relays/relay-topology.ts";

import { relayFactsProblem } from "./relay-facts.ts";

type Reply = NonNullable<AttachResponse["message"]>;

/** Entries of one chunk of a snapshot. */
const chunkEntriesMax = 4_096;
const legRoles = [undefined, "whole", "prefill", "decode"] as const;

/** A hello's facts. Throws `invalid_request` with the field for what cannot be used. */
export function readRelayHello(hello: RelayHello): RelayFacts {
  const { instance, h2Address, httpAddress, engines, streamsMax } = hello;
  const epoch = Number(hello.epoch);
  const facts = { instance, epoch, h2Address, httpAddress, engines, streamsMax };
  const problem = relayFactsProblem(facts);
  if (problem === undefined) return facts;
  const { field, text } = problem;
  throw new MeshError("invalid_request", `${field}: ${text}`, { field });
}

function finite(value: number): number {
  return Number.isFinite(value) && value > 0 ? value : 0;
}

/** A notice as the core takes it; `undefined` for one that names no leg. */
export function readLegNotice(wire: WireNotice): LegNotice | undefined {
  const leg = legRoles[wire.leg];
  if (leg === undefined || wire.decisionId === "") return undefined;
  return {
    decisionId: wire.decisionId,
    leg,
    workerId: wire.workerId,
    ended: wire.ended,
    outcome: legOutcomes[wire.outcome - 1] ?? "done",
    durationMs: finite(wire.durationMs),
    firstTokenMs: finite(wire.firstTokenMs),
    promptTokens: wire.promptTokens,
    cachedTokens: wire.cachedTokens,
    transferMs: finite(wire.transferMs),
    localPrefill: wire.localPrefill,
    last: wire.last,
  };
}

/** A member as relays are told of it. */
export function toldEngine(member: Member): ToldEngine {
  const { key, endpoint, epoch, facts, ready, unheldSince } = member;
  return {
    workerId: key,
    address: endpoint,
    workerStartMs: epoch.workerStartMs,
    engineLife: epoch.engineLife,
    engine: facts?.engineName ?? "",
    ready: ready && unheldSince === undefined,
  };
}

/** A relay as relays are told of it. */
export function toldRelay({ facts }: Relay): ToldRelay {
  const { instance, h2Address, epoch } = facts;
  return { instance, h2Address, epoch };
}

const engineToWire = (engine: ToldEngine) => ({
  ...engine,
  workerStartMs: BigInt(engine.workerStartMs),
  engineLife: BigInt(engine.engineLife),
});
const relayToWire = (relay: ToldRelay) => ({ ...relay, epoch: BigInt(relay.epoch) });

/** A snapshot as chunks, the last of which says how many entries there are. */
export function snapshotToWire({ baseSeq, engines, relays }: TopologySnapshot): Reply[] {
  const chunks: Reply[] = [];
  for (let from = 0; from === 0 || from < engines.length; from += chunkEntriesMax) {
    const last = from + chunkEntriesMax >= engines.length;
    chunks.push({
      $case: "snapshot",
      value: {
        baseSeq: BigInt(baseSeq),
        engines: engines.slice(from, from + chunkEntriesMax).map(engineToWire),
        relays: last ? relays.map(relayToWire) : [],
        last,
        engineCount: last ? engines.length : 0,
        relayCount: last ? relays.length : 0,
      },
    });
  }
  return chunks;
}

/** A change as relays hear of it. */
export function changeToWire(change: TopologyChange): Reply {
  return {
    $case: "delta",
    value: {
      seq: BigInt(change.seq),
      engines: change.engines.map(engineToWire),
      removedEngines: [...change.removedEngines],
      relays: change.relays.map(relayToWire),
      removedRelays: [...change.removedRelays],
    },
  };
}
