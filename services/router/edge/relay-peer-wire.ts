import type { MonoMs } from "../../shared/core/ids.ts";
import type {
  RelayNotice as WireRelay,
  Reservation as WireReservation,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { Decision } from "../core/decisions/decision.ts";
import type { Reservation } from "../core/load/reservation.ts";
import type { PairCandidate } from "../core/placement/pairs/pair-candidate.ts";
import { prefillKeyOf, type PlacedPair } from "../core/placement/pairs/pair-legs.ts";
import type { Relay, RelayNotice } from "../core/relays/relay-roster.ts";

/** The reservations of a request that runs whole on one worker. */
const wholeLeg = { prefillWorkerId: "", transferBytes: 0n, beginsInMs: 0 } as const;

/** What a new decision reserved, as peers hear of it: one reservation, or a pair's prefill leg and then its decode leg. */
export function reservationsToWire(
  decision: Decision,
  uncachedTokens: number,
  pair: PairCandidate | undefined,
): WireReservation[] {
  const decode: WireReservation = {
    decisionId: decision.id,
    workerId: decision.workerId ?? "",
    promptTokens: decision.promptTokens,
    uncachedTokens,
    expectedOutputTokens: decision.expectedOutputTokens,
    ageMs: 0,
    model: decision.model,
    predictedTtftMs: decision.chosen?.predictedTtftMs ?? 0,
    ...wholeLeg,
  };
  if (pair === undefined) return [decode];
  const prefill: WireReservation = {
    ...decode,
    decisionId: prefillKeyOf(decision.id),
    workerId: pair.prefillWorkerId,
    uncachedTokens: decision.promptTokens - pair.prefillMatchedTokens,
    expectedOutputTokens: 1,
  };
  return [
    prefill,
    {
      ...decode,
      prefillWorkerId: pair.prefillWorkerId,
      transferBytes: BigInt(Math.round(pair.transferBytes)),
      beginsInMs: pair.predictedTtftMs,
    },
  ];
}

/** An open reservation as a snapshot tells it; `pair` of which it is the decode leg. */
export function openToWire(
  reservation: Reservation,
  pair: PlacedPair | undefined,
  now: MonoMs,
): WireReservation {
  const { decisionId, workerId, promptTokens, uncachedTokens, expectedOutputTokens } = reservation;
  const isAwaited = reservation.arrivesAt === Infinity && pair !== undefined;
  return {
    decisionId,
    workerId,
    promptTokens,
    uncachedTokens,
    expectedOutputTokens,
    ageMs: now - reservation.openedAt,
    model: "",
    predictedTtftMs: reservation.prefillEndsAt - reservation.openedAt,
    ...(isAwaited
      ? {
          prefillWorkerId: pair.prefillWorker,
          transferBytes: BigInt(Math.round(pair.transferBytes)),
          beginsInMs: reservation.beginsInMs ?? 0,
        }
      : wholeLeg),
  };
}

/** What this router tells peers of a relay. */
export function relayToWire({ facts, draining, streamId }: Relay, goodbye = false): WireRelay {
  return {
    instance: facts.instance,
    epoch: BigInt(facts.epoch),
    h2Address: facts.h2Address,
    httpAddress: facts.httpAddress,
    engines: [...facts.engines],
    streamsMax: facts.streamsMax,
    held: streamId !== undefined && !goodbye,
    goodbye,
    draining,
  };
}

/** A peer's notice of a relay as the core has it. */
export function relayFromWire(wire: WireRelay): RelayNotice {
  return { ...wire, epoch: Number(wire.epoch) };
}
