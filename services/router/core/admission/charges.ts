import type { MonoMs } from "../../../shared/core/ids.ts";
import type { Decision, DecisionAdmission, Observation } from "../decisions/decision.ts";
import type { PlacementRequest, ScoredCandidate } from "../placement/candidate.ts";
import type { GatePass } from "./admitted-request.ts";
import type { AdmissionOptions } from "./options.ts";
import { decodeCostMs, workMs } from "./pool-gate.ts";
import type { PoolGates } from "./pool-gates.ts";
import { classFor } from "./request-hints.ts";

/** Whom a request is charged to. */
export interface Account {
  readonly className: string;
  readonly tenant: string;
}

/** What requests cost the tenants that send them: when they are placed, and corrected when they have been served. */
export class Charges {
  readonly #options: AdmissionOptions;
  readonly #gates: PoolGates;

  constructor(options: AdmissionOptions, of: { readonly gates: PoolGates }) {
    this.#options = options;
    this.#gates = of.gates;
  }

  /** The account of an attempt. */
  accountOf(pass: GatePass): Account {
    if (pass.waiter !== undefined) return pass.waiter.ask;
    const { classes, defaultClass } = this.#options;
    const { priority, tenant } = pass.request.hints;
    return { className: classFor(classes, priority) ?? defaultClass, tenant };
  }

  /** What a request is charged for running on `chosen`, with how it came to be placed. */
  charge(
    pass: GatePass,
    chosen: ScoredCandidate,
    request: PlacementRequest,
    now: MonoMs,
  ): DecisionAdmission {
    const { waiter } = pass;
    const chargedDecodeMs = decodeCostMs(chosen, request, chosen.decodeMs);
    const { className, tenant } = this.accountOf(pass);
    return {
      className,
      tenant,
      chargedMs: workMs(chosen, request.promptTokens) + chargedDecodeMs,
      chargedDecodeMs,
      waitedMs: waiter === undefined ? 0 : now - waiter.queuedAt,
      position: waiter?.position ?? 0,
      blockedBy: waiter?.blockedBy ?? "",
      shedReason: "",
      retryAfterMs: 0,
    };
  }

  /** Charges what an answer's decode took beyond what was expected, or gives back what it did not take. */
  settle(decision: Decision, chosen: ScoredCandidate, observed: Observation, now: MonoMs): void {
    const { admission } = decision;
    if (admission === undefined) return;
    // Where an answer that came whole had its first token is not seen, so it counts as it was predicted.
    const ttftMs =
      observed.ttftMs > 0 ? observed.ttftMs : admission.waitedMs + chosen.predictedTtftMs;
    const decodeMs = Math.max(0, observed.durationMs - ttftMs);
    const costMs = decodeCostMs(chosen, decision, decodeMs) - admission.chargedDecodeMs;
    const { className, tenant } = admission;
    this.#gates.get(decision.pool)?.admission.correct(className, tenant, costMs, now);
  }
}
