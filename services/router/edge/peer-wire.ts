import type { WorkerId } from "../../shared/core/ids.ts";
import type {
  Closing as WireClosing,
  MemberNotice as WireNotice,
  Observation as WireObservation,
  Reservation as WireReservation,
  ServedTimes as WireTimes,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { Member, MemberNotice } from "../core/membership/member.ts";
import type { ServedRecord } from "../core/load/request-ends.ts";
import type { PeerReservation } from "../core/peers/peer-reservations.ts";
import type { AccessRecord } from "./access-log/access-record.ts";

/** What the serve span of a request is written from. */
export type TracedRecord = Omit<AccessRecord, "cluster" | "codeDetails">;

/** What this router tells peers of a member. */
export function noticeToWire(member: Member, goodbye: boolean): WireNotice {
  return {
    workerId: member.workerId,
    dpRank: member.dpRank,
    workerStartMs: BigInt(member.epoch.workerStartMs),
    engineLife: BigInt(member.epoch.engineLife),
    pool: member.pool,
    endpoint: member.endpoint,
    models: [...member.models],
    held: member.streamId !== undefined && !goodbye,
    goodbye,
    ready: member.ready,
    role: member.role === "both" ? "" : member.role,
  };
}

/** A peer's notice as the core has it. */
export function noticeFromWire(wire: WireNotice): MemberNotice {
  return {
    workerId: wire.workerId,
    dpRank: wire.dpRank,
    epoch: { workerStartMs: Number(wire.workerStartMs), engineLife: Number(wire.engineLife) },
    pool: wire.pool,
    endpoint: wire.endpoint,
    models: wire.models,
    held: wire.held,
    goodbye: wire.goodbye,
    ready: wire.ready,
    ...(wire.role === "prefill" || wire.role === "decode" ? { role: wire.role } : {}),
  };
}

/** A peer's reservation as the core has it. */
export function reservationFromWire(wire: WireReservation): PeerReservation {
  return {
    decisionId: wire.decisionId,
    workerId: wire.workerId as WorkerId,
    promptTokens: wire.promptTokens,
    uncachedTokens: wire.uncachedTokens,
    expectedOutputTokens: wire.expectedOutputTokens,
    ageMs: wire.ageMs,
    ...(wire.prefillWorkerId === ""
      ? {}
      : {
          awaits: {
            prefillWorker: wire.prefillWorkerId as WorkerId,
            transferBytes: Number(wire.transferBytes),
            beginsInMs: wire.beginsInMs,
          },
        }),
  };
}

/** The observation that a forwarded access-log record carries. */
export function recordToWire(record: ServedRecord): WireObservation {
  return {
    ttftMs: record.ttftMs,
    durationMs: record.durationMs,
    servedEndpoint: record.servedEndpoint,
    servedAsPicked: false,
    status: record.status,
    responseFlags: record.responseFlags,
    attempts: record.attempts,
    cachedTokens: -1,
    cachedDifference: "",
    closedBy: "access_log",
    responseBytes: BigInt(Math.round(record.responseBytes)),
  };
}

/** What a forwarded record of a traced request carries besides. */
export function timesToWire(record: TracedRecord): WireTimes {
  return {
    requestId: record.requestId,
    traceparent: record.traceparent,
    startUnixUs: BigInt(Math.max(0, Math.round(record.startUnixUs))),
    uploadMs: record.uploadMs,
    upstreamStartMs: record.upstreamStartMs,
    responseHeadersMs: record.responseHeadersMs,
    picked: [...record.picked],
    predictedTtftMs: record.predictedTtftMs,
  };
}

/** A forwarded record of a traced request; `undefined` when it is not traced. */
export function tracedFromWire(closing: WireClosing): TracedRecord | undefined {
  const { decisionId, workerId, observed, times } = closing;
  if (observed === undefined || times === undefined) return undefined;
  return {
    ...recordFromWire(observed),
    ...times,
    startUnixUs: Number(times.startUnixUs),
    decisionId,
    workerId,
  };
}

/** See `recordToWire`. */
export function recordFromWire(wire: WireObservation): ServedRecord {
  return {
    ttftMs: wire.ttftMs,
    durationMs: wire.durationMs,
    servedEndpoint: wire.servedEndpoint,
    status: wire.status,
    responseFlags: wire.responseFlags,
    attempts: wire.attempts,
    responseBytes: Number(wire.responseBytes),
  };
}
