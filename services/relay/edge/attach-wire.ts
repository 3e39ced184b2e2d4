import {
  LegKind,
  LegOutcome as WireOutcome,
  type AttachRequest,
  type AttachResponse,
  type Engine,
  type LegNotice as WireNotice,
  type RelayPeer,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import type { LegRole } from "../../shared/core/placement-token/placement.ts";
import type { LegOutcome } from "../../shared/core/leg-outcome.ts";
import type { AttachInput, AttachOutput } from "../core/topology/attach-stream.ts";
import type { NumberedNotice } from "../core/topology/leg-notices.ts";
import type { LiveEngine, LiveRelay } from "../core/topology/live-topology.ts";

/** What a relay says of itself in hello and load. */
export interface RelayFacts {
  readonly instance: string;
  /** Start of the process, ms since 1970. */
  readonly epoch: number;
  readonly h2Address: string;
  readonly httpAddress: string;
  readonly streamsMax: number;
  readonly load: {
    readonly openRequests: number;
    readonly guardedStreams: number;
    readonly busyRatio: number;
    readonly bufferedBytes: number;
    readonly draining: boolean;
  };
}

const kinds: Readonly<Record<LegRole, LegKind>> = {
  whole: LegKind.LEG_KIND_WHOLE,
  prefill: LegKind.LEG_KIND_PREFILL,
  decode: LegKind.LEG_KIND_DECODE,
};

const outcomes: Readonly<Record<LegOutcome, WireOutcome>> = {
  done: WireOutcome.LEG_OUTCOME_DONE,
  lost: WireOutcome.LEG_OUTCOME_LOST,
  engine_error: WireOutcome.LEG_OUTCOME_ENGINE_ERROR,
  timeout: WireOutcome.LEG_OUTCOME_TIMEOUT,
  frozen: WireOutcome.LEG_OUTCOME_FROZEN,
  cancelled: WireOutcome.LEG_OUTCOME_CANCELLED,
  not_started: WireOutcome.LEG_OUTCOME_NOT_STARTED,
  no_handoff: WireOutcome.LEG_OUTCOME_NO_HANDOFF,
  stale: WireOutcome.LEG_OUTCOME_STALE,
  drained: WireOutcome.LEG_OUTCOME_DRAINED,
};

function toEngine(engine: Engine): LiveEngine {
  return {
    workerId: engine.workerId,
    address: engine.address,
    workerStartMs: Number(engine.workerStartMs),
    engineLife: Number(engine.engineLife),
    engine: engine.engine,
    ready: engine.ready,
  };
}

function toRelay(relay: RelayPeer): LiveRelay {
  return { instance: relay.instance, h2Address: relay.h2Address, epoch: Number(relay.epoch) };
}

/** A message of the router as the stream's core takes it; `undefined` for those that are carried out directly. */
export function toAttachInput(response: AttachResponse): AttachInput | undefined {
  const { message } = response;
  switch (message?.$case) {
    case "challenge":
      return {
        kind: "challenge",
        protocolVersion: message.value.protocolVersion,
        router: message.value.routerInstance,
        routerEpoch: Number(message.value.routerEpoch),
        nonce: message.value.nonce,
      };
    case "accepted":
      return { kind: "accepted" };
    case "snapshot": {
      const { baseSeq, engines, relays, last, engineCount, relayCount } = message.value;
      return {
        kind: "snapshot",
        part: {
          baseSeq: Number(baseSeq),
          engines: engines.map(toEngine),
          relays: relays.map(toRelay),
          last,
          engineCount,
          relayCount,
        },
      };
    }
    case "delta": {
      const { seq, engines, relays, removedEngines, removedRelays } = message.value;
      return {
        kind: "delta",
        change: {
          seq: Number(seq),
          engines: engines.map(toEngine),
          relays: relays.map(toRelay),
          removedEngines,
          removedRelays,
        },
      };
    }
    case "ack":
      return { kind: "leg_ack", appliedSeq: Number(message.value.appliedSeq) };
    case "keep":
    case "drain":
    case undefined:
      return undefined;
  }
}

function toNotice({ seq, notice }: NumberedNotice, now: number): WireNotice {
  return {
    seq: BigInt(seq),
    decisionId: notice.decisionId,
    leg: kinds[notice.leg],
    workerId: notice.workerId,
    ended: notice.ended,
    outcome: notice.ended ? outcomes[notice.outcome] : WireOutcome.LEG_OUTCOME_UNSPECIFIED,
    durationMs: notice.durationMs,
    firstTokenMs: notice.firstTokenMs,
    ttftMs: notice.ttftMs,
    transferMs: notice.transferMs,
    promptTokens: notice.promptTokens,
    cachedTokens: notice.cachedTokens,
    generatedTokens: notice.generatedTokens,
    status: notice.status,
    localPrefill: notice.localPrefill,
    ageMs: Math.max(0, now - notice.at),
    last: notice.last,
  };
}

/** What the core wants said, as a message; hello is made by whoever holds the key. */
export function toAttachRequest(
  output: Exclude<AttachOutput, { kind: "hello" }>,
  facts: RelayFacts,
  time: { readonly now: number; readonly wallUnixUs: number },
): AttachRequest {
  switch (output.kind) {
    case "load":
      return {
        message: {
          $case: "load",
          value: {
            ...facts.load,
            bufferedBytes: BigInt(facts.load.bufferedBytes),
            sentUnixUs: BigInt(time.wallUnixUs),
          },
        },
      };
    case "legs":
      return {
        message: {
          $case: "legs",
          value: { notices: output.notices.map((one) => toNotice(one, time.now)) },
        },
      };
    case "resync":
      return {
        message: { $case: "resync", value: { expectedSeq: BigInt(output.expectedSeq) } },
      };
  }
}
