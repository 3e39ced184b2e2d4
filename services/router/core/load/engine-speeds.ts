import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";
import type { Decision, Observation } from "../decisions/decision.ts";
import type { Member } from "../membership/member.ts";
import type { Members } from "../membership/members.ts";
import type { KnownSpeed, PlacementTable } from "../placement/placement-table.ts";
import { defaultStepModel, fasterOf, WorkerModel, type CounterDelta } from "./worker-model.ts";

/**
 * What was learned of an engine that has been given nothing for so long may come from a fault that is over, ms. An
 * engine that is really slower costs one slower request in this time.
 */
const unusedMsMax = 60_000;

/** How fast each engine is, as far as is known: learns from requests and reports, and doubts what it has not seen for long. */
export class EngineSpeeds {
  readonly #members: Members;
  readonly #table: PlacementTable;
  readonly #models = new Map<WorkerId, WorkerModel>();
  /** When a request was placed on each last, or its speed was guessed anew. */
  readonly #usedAt = new Map<WorkerId, MonoMs>();

  constructor(of: { readonly members: Members; readonly table: PlacementTable }) {
    this.#members = of.members;
    this.#table = of.table;
  }

  /** What is known of an engine. */
  modelOf(key: WorkerId): WorkerModel | undefined {
    return this.#models.get(key);
  }

  /** The same as placement looks at it; defaults of an engine that nothing is known of. */
  of(key: WorkerId): KnownSpeed {
    const model = this.#models.get(key);
    return {
      steps: model?.steps ?? defaultStepModel,
      outputTokensMean: model?.outputTokensMean,
    };
  }

  /** A member joined, perhaps again; `engineRestarted` when its engine is another life of the one known. */
  joined(member: Member, engineRestarted: boolean, now: MonoMs): void {
    const { key, facts } = member;
    const model = this.#models.get(key);
    if (model === undefined) this.#models.set(key, new WorkerModel(facts?.stepModel));
    else if (engineRestarted) model.restart(this.#guess(member, model.steps));
    this.#usedAt.set(key, now);
  }

  /** A member left. */
  left(key: WorkerId): void {
    this.#models.delete(key);
    this.#usedAt.delete(key);
  }

  /**
   * A request was placed on an engine here. One of which only peers have told may get requests too, and its times show how
   * fast it is.
   */
  used(key: WorkerId, now: MonoMs): void {
    this.#usedAt.set(key, now);
    if (!this.#models.has(key)) this.#models.set(key, new WorkerModel(undefined));
  }

  /** A peer placed a request on an engine. */
  usedByPeer(key: WorkerId, now: MonoMs): void {
    if (this.#usedAt.has(key)) this.#usedAt.set(key, now);
  }

  /** What an engine's counters did between two reports. */
  observeInterval(key: WorkerId, delta: CounterDelta): void {
    this.#models.get(key)?.observeInterval(delta);
    this.#changed(key);
  }

  /** A prompt that found its engine idle took so long. */
  observePrefill(
    key: WorkerId,
    sample: { readonly newTokens: number; readonly cachedTokens: number; readonly ms: number },
  ): void {
    this.#models.get(key)?.observePrefill(sample);
    this.#changed(key);
  }

  /**
   * Learns from the first token of a request that ran whole where it was placed; `backlogMs` of prefill work were before
   * it when it was placed.
   */
  observeServed(decision: Decision, observed: Observation, backlogMs: number): void {
    const key = decision.workerId as WorkerId;
    const model = this.#models.get(key);
    const chosen = decision.chosen;
    if (model === undefined || chosen === undefined) return;
    // The proxy's clock runs while a request waits here; the engine knows nothing of that.
    const ttftMs = observed.ttftMs - (decision.admission?.waitedMs ?? 0);
    if (ttftMs <= 0) return;
    model.observeError(chosen.predictedTtftMs, ttftMs);
    // Only requests that found no prefill work before them show what prefill alone costs.
    if (backlogMs > 0 || chosen.load.decoding > 0 || observed.attempts > 1) return;
    const cachedTokens = observed.cachedTokens >= 0 ? observed.cachedTokens : chosen.matchedTokens;
    model.observePrefill({
      newTokens: decision.promptTokens - cachedTokens,
      cachedTokens,
      ms: ttftMs,
    });
    this.#changed(key);
  }

  /** An engine that is not the fastest of its kind and was given nothing for long is measured anew. */
  tick(now: MonoMs): void {
    for (const [key, usedAt] of this.#usedAt) {
      if (now - usedAt >= unusedMsMax) this.#doubt(key, now);
    }
  }

  #doubt(key: WorkerId, now: MonoMs): void {
    this.#usedAt.set(key, now);
    const member = this.#members.get(key);
    const model = this.#models.get(key);
    if (member === undefined || model === undefined) return;
    const known = model.steps;
    const isSlower = this.#stepsLike(member).some((steps) => fasterOf(known, steps) === steps);
    if (!isSlower) return;
    model.restart(this.#guess(member, known));
    this.#changed(key);
  }

  /**
   * Speed assumed of an engine that has to be measured anew: what its worker announces, what was known of it, or what
   * is known of engines like it, whichever is fastest. An engine thought too slow would get no request in a mesh with
   * time to spare, and nothing would ever show that it is not; one thought too fast is put right by its first requests.
   */
  #guess(member: Member, known: StepModel): StepModel {
    const announced = member.facts?.stepModel ?? defaultStepModel;
    return this.#stepsLike(member).reduce(fasterOf, fasterOf(announced, known));
  }

  /** What is known of the other engines of its pool whose workers announce the same. */
  #stepsLike(member: Member): StepModel[] {
    return [...this.#members.ofPool(member.pool)].flatMap((other) => {
      const isLike = isSameModel(other.facts?.stepModel, member.facts?.stepModel);
      const steps = other === member || !isLike ? undefined : this.#models.get(other.key)?.steps;
      return steps ?? [];
    });
  }

  #changed(key: WorkerId): void {
    this.#table.speedChanged(key, this.of(key));
  }
}

function isSameModel(a: StepModel | undefined, b: StepModel | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return (Object.keys(a) as (keyof StepModel)[]).every((name) => a[name] === b[name]);
}
