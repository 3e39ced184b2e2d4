import type { MonoMs } from "../../../shared/core/ids.ts";
import type { DecisionMaker } from "../decisions/decision-maker.ts";
import type { DecisionAdmission } from "../decisions/decision.ts";
import type { RequestPlacer } from "../placement/request-placer.ts";
import type { Attempt, LateRefusal } from "./admission.ts";
import type { AdmittedRequest, GatePass, WaitingRequest } from "./admitted-request.ts";
import type { AdmissionOptions } from "./options.ts";
import type { PoolGates } from "./pool-gates.ts";
import { classFor } from "./request-hints.ts";
import type { Refusal } from "./waiter.ts";

/** Lets requests be placed in their turn, and refuses those whose turn does not come in time. */
export class TurnTaking {
  readonly #options: AdmissionOptions;
  readonly #gates: PoolGates;
  readonly #placer: RequestPlacer;
  readonly #maker: DecisionMaker;
  #isPumping = false;

  constructor(
    options: AdmissionOptions,
    of: {
      readonly gates: PoolGates;
      readonly placer: RequestPlacer;
      readonly maker: DecisionMaker;
    },
  ) {
    this.#options = options;
    this.#gates = of.gates;
    this.#placer = of.placer;
    this.#maker = of.maker;
  }

  /**
   * Places a request when its turn comes and a worker has room, or refuses it. Returns `undefined` when it has been decided
   * already, otherwise the wait; call `pump` at `PoolGates.wakeAt` from then on.
   */
  arrive(request: AdmittedRequest, now: MonoMs): WaitingRequest | undefined {
    const { input, hints, bytes } = request;
    const gate = this.#gates.of(input.pool);
    const { classes, defaultClass } = this.#options;
    const ask = {
      className: classFor(classes, hints.priority) ?? defaultClass,
      tenant: hints.tenant,
      ttftMs: hints.ttftMs,
      bytes: bytes + input.hashes.byteLength,
      constrained: input.subset !== undefined,
    };
    this.#isPumping = true;
    let arrival;
    try {
      arrival = gate.admission.arrive(request, ask, now);
    } finally {
      this.#isPumping = false;
    }
    if (arrival.kind === "answered") return undefined;
    if (arrival.kind === "refused") {
      this.#shed(request, arrival.refusal, { ask, waitedMs: 0, position: 0, blockedBy: "" });
      return undefined;
    }
    const { waiter, waitMsMax } = arrival;
    return {
      waitMsMax,
      cancel: (at) => {
        gate.admission.cancel(waiter, at);
      },
    };
  }

  /** Decides the waiting requests whose time has come. Cheap when nobody waits. */
  pump(now: MonoMs): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    try {
      for (const { admission } of this.#gates.all.values()) {
        if (admission.wakeAt(now) !== undefined) this.#shedLate(admission.pump(now), now);
      }
    } finally {
      this.#isPumping = false;
    }
  }

  /** Refuses everyone who waits: this router stops. */
  stop(now: MonoMs): void {
    for (const { admission } of this.#gates.all.values()) {
      this.#shedLate(admission.stop(now), now);
    }
  }

  /** One attempt to place a request; see `AdmissionPort.place`. */
  attempt(pass: GatePass, now: MonoMs): Attempt {
    const made = this.#placer.place(pass.request.input, now, pass);
    if ("kind" in made) return made;
    const { admission, outcome } = made;
    pass.request.decided(made);
    if (outcome.kind !== "placed" || admission === undefined) {
      return { kind: "answered", costMs: 0, tokens: 0 };
    }
    const uncached = made.promptTokens - (made.chosen?.matchedTokens ?? 0);
    const tokens = uncached + made.expectedOutputTokens;
    return { kind: "answered", costMs: admission.chargedMs, tokens };
  }

  #shedLate(late: readonly LateRefusal<AdmittedRequest>[], now: MonoMs): void {
    for (const { waiter, refusal } of late) {
      const { ask, position, blockedBy, queuedAt } = waiter;
      this.#shed(waiter.item, refusal, { ask, waitedMs: now - queuedAt, position, blockedBy });
    }
  }

  #shed(
    request: AdmittedRequest,
    refusal: Refusal,
    was: Pick<DecisionAdmission, "waitedMs" | "position" | "blockedBy"> & {
      readonly ask: { readonly className: string; readonly tenant: string };
    },
  ): void {
    const { ask, waitedMs, position, blockedBy } = was;
    const { reason, retryAfterMs, isTenantLimit, message } = refusal;
    // Not an Error: a trace of the stack costs more than all else that a refusal takes.
    const refused = { code: isTenantLimit ? "tenant_limited" : "overloaded", message } as const;
    const decision = this.#maker.refused(request.input, refused, {
      className: ask.className,
      tenant: ask.tenant,
      chargedMs: 0,
      chargedDecodeMs: 0,
      waitedMs,
      position,
      blockedBy,
      shedReason: reason,
      retryAfterMs,
    });
    request.decided(decision);
  }
}
