import type { MeshErrorCode } from "../../../shared/core/errors.ts";
import type { PairStart, PrefillReading } from "../engines/engine-adapter.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { LegSlot, LocalPrefillReason, RequestOutcome } from "./leg-outcome.ts";

/** A placement as a run needs it: the bodies, and what the engines can do. */
export type RunPlan =
  | { readonly kind: "whole"; readonly body: Uint8Array; readonly workerId: string }
  | {
      readonly kind: "pair";
      readonly order: "sequential" | "concurrent";
      readonly start: PairStart;
      /** The client's body as it came, for a decode engine that prefills itself. */
      readonly untouched: Uint8Array;
      readonly canPrefillOnDecode: boolean;
      /** Set when the pair must not be used: the request goes to decode untouched. */
      readonly unpaired?: LocalPrefillReason;
      readonly prefillWorkerId: string;
      readonly decodeWorkerId: string;
    };

/** What happened to a request. */
export type RunEvent =
  | { readonly kind: "begin" }
  | { readonly kind: "prefill_read"; readonly reading: PrefillReading }
  | { readonly kind: "prefill_failed"; readonly outcome: LegOutcome; readonly why: string }
  /** The answer is good so far: its status is not a failure, and its first bytes are no error. */
  | { readonly kind: "answer_began" }
  /** `outcome`: of the leg, when the answer is complete although its engine was lost. */
  | { readonly kind: "answer_ended"; readonly outcome?: LegOutcome }
  /** `canContinue`: what passed so far can be gone on with elsewhere. */
  | {
      readonly kind: "answer_failed";
      readonly outcome: LegOutcome;
      readonly why: string;
      readonly canContinue?: boolean;
    }
  | { readonly kind: "placed"; readonly plan: RunPlan }
  | { readonly kind: "not_placed"; readonly code: MeshErrorCode; readonly why: string }
  | { readonly kind: "client_gone" }
  | { readonly kind: "overdue" };

/** What is to be done, in order. */
export type RunEffect =
  | {
      readonly kind: "send";
      readonly leg: LegSlot;
      readonly body: Uint8Array;
      /** Why decode prefills itself; absent when it pulls KV or the request was placed whole. */
      readonly local?: LocalPrefillReason;
      /** Whether the body carries a hand-off, which is good once. */
      readonly handoff: boolean;
    }
  /**
   * Stop a leg; nothing more is heard of it. One with a hand-off must have reached its engine before it is stopped: the
   * engine then tells prefill to free the blocks, which otherwise stay until their lease ends.
   */
  | { readonly kind: "abort"; readonly leg: LegSlot; readonly handoff: boolean }
  | {
      readonly kind: "leg_ended";
      readonly leg: LegSlot;
      readonly outcome: LegOutcome;
      readonly why: string;
    }
  /** Hand the answer's head and bytes on to the client. */
  | { readonly kind: "pass" }
  /** The client gets this whole answer, made by the prefill leg. */
  | { readonly kind: "answer"; readonly bytes: Uint8Array }
  | { readonly kind: "place_again"; readonly excluded: readonly string[]; readonly why: string }
  /** Nothing was answered yet: an error tells why. */
  | { readonly kind: "fail"; readonly code: MeshErrorCode; readonly message: string }
  /** The answer breaks off: the client is told inside of it. */
  | { readonly kind: "break"; readonly code: MeshErrorCode; readonly message: string }
  | { readonly kind: "over"; readonly outcome: RequestOutcome };

type State = "new" | "prefilling" | "pairing" | "answering" | "passing" | "placing" | "over";

const outcomeOf: Readonly<Record<LegOutcome, RequestOutcome>> = {
  done: "done",
  lost: "engine_lost",
  engine_error: "engine_error",
  timeout: "deadline_exceeded",
  frozen: "engine_frozen",
  cancelled: "client_cancel",
  not_started: "engine_lost",
  no_handoff: "engine_error",
  stale: "engine_lost",
  drained: "engine_lost",
};

const nothing = new Uint8Array(0);

/** Failures of a leg that another engine may not have. */
const worthAnother: ReadonlySet<LegOutcome> = new Set([
  "lost",
  "stale",
  "engine_error",
  "drained",
  "frozen",
]);

/**
 * Runs the legs of one request, from its placement to the end of its answer. Deterministic: events in, effects out.
 *
 * | state      | legs open        | prefill read or failed     | answer began | answer failed                       |
 * | ---------- | ---------------- | -------------------------- | ------------ | ----------------------------------- |
 * | prefilling | prefill          | → answering, or → over     | –            | –                                   |
 * | pairing    | prefill, answer  | failed: → placing          | → passing    | → placing                           |
 * | answering  | answer           | –                          | → passing    | once without hand-off, → placing    |
 * | passing    | answer           | failed: ignored            | –            | → placing if it can go on, or → over |
 * | placing    | none             | –                          | –            | –                                   |
 *
 * Invariants (request-run.test.ts): every leg that is sent ends once; a hand-off is sent once; nothing follows `over`; the client gets one of `pass`, `answer` and `fail`.
 */
export class RequestRun {
  readonly #placementsMax: number;
  readonly #excluded: string[] = [];
  #plan: RunPlan;
  #state: State = "new";
  #open = { prefill: false, answer: false };
  #hasHandoff = false;
  #placements = 1;
  /** Whether the answer's head has gone to the client. */
  #hasPassed = false;

  /**
   * `placementsMax`: most engines (or pairs) that are tried before the client hears of a failure, and again as often for
   * each time that the answer passes.
   */
  constructor(plan: RunPlan, placementsMax: number) {
    this.#plan = plan;
    this.#placementsMax = placementsMax;
  }

  /** Whether everything has happened. */
  get isOver(): boolean {
    return this.#state === "over";
  }

  /** Whether the answer's head has gone to the client. */
  get isPassing(): boolean {
    return this.#state === "passing";
  }

  /** What follows from an event. */
  step(event: RunEvent): RunEffect[] {
    const effects: RunEffect[] = [];
    if (this.#state === "over") return effects;
    switch (event.kind) {
      case "begin":
        this.#begin(effects);
        break;
      case "prefill_read":
        this.#prefillRead(event.reading, effects);
        break;
      case "prefill_failed":
        this.#prefillFailed(event.outcome, event.why, effects);
        break;
      case "answer_began":
        if (this.#state !== "answering" && this.#state !== "pairing") break;
        this.#state = "passing";
        this.#hasPassed = true;
        this.#placements = 0;
        // What was only needed to begin need not stay for as long as the answer lasts.
        this.#plan = { kind: "whole", body: nothing, workerId: this.#answeringWorker };
        effects.push({ kind: "pass" });
        break;
      case "answer_ended":
        this.#endLeg("answer", event.outcome ?? "done", "", effects);
        this.#close("done", "done", effects);
        break;
      case "answer_failed":
        this.#answerFailed(event.outcome, event.why, event.canContinue === true, effects);
        break;
      case "placed":
        if (this.#state !== "placing") break;
        this.#plan = event.plan;
        this.#placements++;
        this.#begin(effects);
        break;
      case "not_placed":
        if (this.#state !== "placing") break;
        this.#tell(event.code, event.why, effects);
        this.#close("engine_lost", "cancelled", effects);
        break;
      case "client_gone":
        this.#close("client_cancel", "cancelled", effects);
        break;
      case "overdue":
        this.#tell("deadline_exceeded", "the request took longer than its deadline", effects);
        this.#close("deadline_exceeded", "timeout", effects);
        break;
    }
    return effects;
  }

  #begin(effects: RunEffect[]): void {
    const plan = this.#plan;
    this.#hasHandoff = false;
    if (plan.kind === "whole") {
      this.#sendAnswer(plan.body, false, undefined, effects);
      return;
    }
    if (plan.unpaired !== undefined) {
      effects.push({
        kind: "leg_ended",
        leg: "prefill",
        outcome: "not_started",
        why: plan.unpaired,
      });
      this.#sendAnswer(plan.untouched, false, plan.unpaired, effects);
      return;
    }
    this.#open.prefill = true;
    effects.push({ kind: "send", leg: "prefill", body: plan.start.prefillBody, handoff: false });
    this.#state = "prefilling";
    if (plan.order === "sequential" || plan.start.decodeBody === undefined) return;
    this.#sendAnswer(plan.start.decodeBody, false, undefined, effects);
    this.#state = "pairing";
  }

  #sendAnswer(
    body: Uint8Array,
    handoff: boolean,
    local: LocalPrefillReason | undefined,
    effects: RunEffect[],
  ): void {
    this.#open.answer = true;
    this.#hasHandoff = handoff;
    this.#state = "answering";
    effects.push({
      kind: "send",
      leg: "answer",
      body,
      handoff,
      ...(local === undefined ? {} : { local }),
    });
  }

  #prefillRead(reading: PrefillReading, effects: RunEffect[]): void {
    if (!this.#open.prefill) return;
    const plan = this.#plan;
    // With legs that run at once decode does not wait for what prefill says.
    if (plan.kind === "whole" || plan.order === "concurrent") {
      this.#endLeg("prefill", "done", "", effects);
      return;
    }
    switch (reading.kind) {
      case "handoff":
        this.#endLeg("prefill", "done", "", effects);
        this.#sendAnswer(reading.decodeBody, true, undefined, effects);
        return;
      case "final":
        this.#endLeg("prefill", "done", "", effects);
        this.#skipAnswer("prefill answered all", effects);
        this.#state = "answering";
        effects.push({ kind: "answer", bytes: reading.answer });
        this.#close("done", "done", effects);
        return;
      case "none":
        this.#prefillFailed("no_handoff", reading.why, effects);
        return;
    }
  }

  #skipAnswer(why: string, effects: RunEffect[]): void {
    effects.push({ kind: "leg_ended", leg: "answer", outcome: "not_started", why });
  }

  #prefillFailed(outcome: LegOutcome, why: string, effects: RunEffect[]): void {
    if (!this.#open.prefill) return;
    this.#endLeg("prefill", outcome, why, effects);
    const plan = this.#plan;
    // Once the answer passes, its prompt's KV has arrived.
    if (this.#state === "passing" || plan.kind === "whole") return;
    if (plan.canPrefillOnDecode && !this.#open.answer) {
      this.#sendAnswer(plan.untouched, false, "prefill_failed", effects);
      return;
    }
    if (this.#open.answer) {
      effects.push({ kind: "abort", leg: "answer", handoff: false });
      this.#endLeg("answer", "cancelled", "its prefill failed", effects);
    } else this.#skipAnswer("its prefill failed", effects);
    this.#placeAgain(outcome, why, plan.prefillWorkerId, effects);
  }

  get #answeringWorker(): string {
    const plan = this.#plan;
    return plan.kind === "whole" ? plan.workerId : plan.decodeWorkerId;
  }

  /** The client hears of a failure: as an error, or inside the answer that it has begun to get. */
  #tell(code: MeshErrorCode, message: string, effects: RunEffect[]): void {
    effects.push({ kind: this.#hasPassed ? "break" : "fail", code, message });
  }

  #answerFailed(
    outcome: LegOutcome,
    why: string,
    canContinue: boolean,
    effects: RunEffect[],
  ): void {
    if (!this.#open.answer) return;
    this.#endLeg("answer", outcome, why, effects);
    const plan = this.#plan;
    if (this.#state === "passing" && !canContinue) {
      this.#tell("worker_lost", `the engine failed: ${why}`, effects);
      this.#close(outcomeOf[outcome], "cancelled", effects);
      return;
    }
    if (this.#open.prefill) {
      effects.push({ kind: "abort", leg: "prefill", handoff: false });
      this.#endLeg("prefill", "cancelled", "its decode failed", effects);
    }
    if (plan.kind === "pair" && this.#hasHandoff && outcome === "engine_error") {
      // The KV could not be pulled; the hand-off must not be used again.
      this.#sendAnswer(plan.untouched, false, "transfer_failed", effects);
      return;
    }
    this.#placeAgain(outcome, why, this.#answeringWorker, effects);
  }

  #placeAgain(outcome: LegOutcome, why: string, workerId: string, effects: RunEffect[]): void {
    this.#excluded.push(workerId);
    if (worthAnother.has(outcome) && this.#placements < this.#placementsMax) {
      this.#state = "placing";
      effects.push({ kind: "place_again", excluded: [...this.#excluded], why });
      return;
    }
    const code = outcome === "timeout" ? "deadline_exceeded" : "worker_lost";
    this.#tell(code, `the engine failed: ${why}`, effects);
    this.#close(outcomeOf[outcome], "cancelled", effects);
  }

  #endLeg(leg: LegSlot, outcome: LegOutcome, why: string, effects: RunEffect[]): void {
    if (!this.#open[leg]) return;
    this.#open[leg] = false;
    effects.push({ kind: "leg_ended", leg, outcome, why });
  }

  /** Ends what is open, first of all at the engines. */
  #close(outcome: RequestOutcome, legOutcome: LegOutcome, effects: RunEffect[]): void {
    for (const leg of ["prefill", "answer"] as const) {
      if (!this.#open[leg]) continue;
      const handoff = leg === "answer" && this.#hasHandoff;
      effects.unshift({ kind: "abort", leg, handoff });
      this.#endLeg(leg, legOutcome, "", effects);
    }
    if (this.#state === "prefilling") this.#skipAnswer("", effects);
    this.#state = "over";
    effects.push({ kind: "over", outcome });
  }
}
