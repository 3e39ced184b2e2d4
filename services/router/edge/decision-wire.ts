import type { Decision, DecisionAdmission, Observation } from "../core/decisions/decision.ts";
import type { ScoredCandidate } from "../core/placement/candidate.ts";
import type { DecisionPair } from "../core/placement/pairs/decision-pair.ts";
import type {
  Admission as WireAdmission,
  Candidate,
  Decision as WireDecision,
  Observation as WireObservation,
  PairChoice,
} from "../../shared/gen/kvmesh/router/v1/router.ts";

const outcomes = { placed: 1, no_worker: 2, refused: 3 } as const;

/** A candidate as the wire has it. */
export function candidateToWire(candidate: ScoredCandidate): Candidate {
  return {
    workerId: candidate.workerId,
    endpoint: candidate.endpoint,
    matchedBlocks: candidate.matchedBlocks,
    matchedTokens: candidate.matchedTokens,
    costMs: candidate.costMs,
    terms: candidate.terms.map(({ name, ms }) => ({ name, ms })),
    predictedTtftMs: candidate.predictedTtftMs,
    openRequests: candidate.load.openRequests,
    queuedPrefillTokens: candidate.load.queuedPrefillTokens,
    reportedRunning: candidate.reportedRunning,
    reportedWaiting: candidate.reportedWaiting,
    reportedAgeMs: candidate.reportedAgeMs,
    suspect: candidate.suspect,
  };
}

/** An observation as the wire has it. */
export function observationToWire(observed: Observation): WireObservation {
  return { ...observed, responseBytes: BigInt(Math.round(observed.responseBytes)) };
}

/** A decision as the wire has it. */
export function decisionToWire(decision: Decision): WireDecision {
  const { outcome } = decision;
  const refused = outcome.kind !== "placed";
  return {
    id: decision.id,
    requestId: decision.requestId,
    traceId: decision.traceId,
    decidedUnixUs: BigInt(decision.decidedUnixUs),
    decideUs: decision.decideUs,
    pool: decision.pool,
    model: decision.model,
    policy: decision.policy,
    outcome: outcomes[outcome.kind],
    errorCode: refused ? outcome.code : "",
    errorMessage: refused ? outcome.message : "",
    promptTokens: decision.promptTokens,
    promptBlocks: decision.promptBlocks,
    expectedOutputTokens: decision.expectedOutputTokens,
    workerId: decision.workerId ?? "",
    endpoints: [...decision.endpoints],
    candidates: decision.candidates.map(candidateToWire),
    filtered: decision.filtered.map((f) => ({ ...f })),
    marginMs: decision.marginMs,
    tieBreak: decision.tieBreak,
    observed: decision.observed === undefined ? undefined : observationToWire(decision.observed),
    indexAgeMs: decision.indexAgeMs,
    loadOnlyReason: decision.loadOnlyReason,
    traceparent: decision.traceparent,
    admission: decision.admission === undefined ? undefined : admissionToWire(decision.admission),
    leftOut: decision.leftOut,
    answer: decision.answer,
    pair: decision.pair === undefined ? undefined : pairToWire(decision.pair),
    guard: decision.guard && { off: decision.guard.off, relays: [...decision.guard.relays] },
  };
}

function pairToWire(pair: DecisionPair): PairChoice {
  return {
    form: pair.form,
    why: pair.why,
    marginMs: pair.marginMs,
    candidates: pair.candidates.map((one) => ({
      prefillWorkerId: one.prefillWorkerId,
      decodeWorkerId: one.decodeWorkerId,
      costMs: one.costMs,
      terms: one.terms.map(({ name, ms }) => ({ name, ms })),
      predictedTtftMs: one.predictedTtftMs,
      prefillMatchedTokens: one.prefillMatchedTokens,
      decodeMatchedTokens: one.decodeMatchedTokens,
      transferBytes: BigInt(Math.round(one.transferBytes)),
    })),
    relays: [...pair.relays],
    itlTargetMs: pair.itl?.targetMs ?? 0,
    pairItlMs: pair.itl?.pairMs ?? 0,
    wholeItlMs: pair.itl?.wholeMs ?? 0,
    wholeItlCostMs: pair.itl?.wholeCostMs ?? 0,
  };
}

function admissionToWire(admission: DecisionAdmission): WireAdmission {
  return {
    className: admission.className,
    tenant: admission.tenant,
    waitedMs: admission.waitedMs,
    position: admission.position,
    blockedBy: admission.blockedBy,
    shedReason: admission.shedReason,
    retryAfterMs: admission.retryAfterMs,
    chargedMs: admission.chargedMs,
  };
}
