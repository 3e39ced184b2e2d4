import { MeshError } from "../../../shared/core/errors.ts";
import type { Placement } from "../../../shared/core/placement-token/placement.ts";
import { toMeshError } from "../../../shared/edge/wire.ts";
import type { RelayedBody } from "../../core/body/relayed-body.ts";
import type { PrefillReading } from "../../core/engines/engine-adapter.ts";
import type { ResumedFrom } from "../../core/guard/guarded-stream.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { LegSlot, RequestOutcome } from "../../core/request/leg-outcome.ts";
import { RequestRun, type RunEffect, type RunEvent } from "../../core/request/request-run.ts";
import { abandon } from "../abandon.ts";
import { isUtf8 } from "../body-checks.ts";
import type { AnswerListener, ClientAnswer, ClientRequest } from "../client-exchange.ts";
import type { LegRecord } from "../leg-record.ts";
import type { RelayParts } from "../relay-parts.ts";
import { AnswerPath } from "./answer-path.ts";
import { ClientWriter } from "./client-writer.ts";
import { Legs, type LegsListener } from "./legs.ts";
import { OpenRequest } from "./open-request.ts";
import { PhaseWait } from "./phase-wait.ts";
import { placeAgain } from "./place-again.ts";
import { planPlacement } from "./planning.ts";

/** What an exchange is made of. */
export interface ExchangeOptions {
  readonly parts: RelayParts;
  readonly request: ClientRequest;
  readonly answer: ClientAnswer;
  readonly placement: Placement;
  readonly body: RelayedBody;
  readonly arrivedAt: number;
  /** A stream of another relay to go on with. */
  readonly resumed?: ResumedFrom;
  readonly onOver: (exchange: Exchange) => void;
}

/** One request on its way through the relay: carries out what its run decides, and tells the run what happens. */
export class Exchange implements AnswerListener, LegsListener {
  readonly #open: OpenRequest;
  readonly #run: RequestRun;
  readonly #wait: PhaseWait;
  readonly #writer: ClientWriter;
  readonly #legs: Legs;
  readonly #path: AnswerPath;
  readonly #requestDeadline: number;
  /** Aborted when nobody waits for another placement any more. */
  #placing: AbortController | undefined;
  readonly #onOver: (exchange: Exchange) => void;
  /** Placements that it was run on. */
  #placements = 1;

  /** Plans the legs; throws what the client hears when the placement cannot be carried out. */
  constructor(options: ExchangeOptions) {
    const { parts, request, answer, resumed } = options;
    this.#open = new OpenRequest({ ...options, client: request, resumed });
    this.#onOver = options.onOver;
    this.#requestDeadline = options.arrivedAt + parts.config.deadlines.requestMs;
    this.#wait = new PhaseWait(parts.clock);
    this.#writer = new ClientWriter(answer, this.#open);
    this.#legs = new Legs(this.#open, this);
    this.#path = new AnswerPath({
      open: this.#open,
      writer: this.#writer,
      wait: this.#wait,
      resumed,
      legs: () => this.#legs,
      run: () => this.#run,
      step: (event) => {
        this.#step(event);
      },
    });
    try {
      this.#plan(resumed !== undefined);
    } catch (error) {
      this.#path.guard?.ended(true);
      this.#endSpans("refused");
      throw error;
    }
    this.#run = new RequestRun(this.#open.planned.plan, parts.config.limits.placementsMax);
    answer.listener = this;
  }

  /** Begins the first leg. */
  begin(): void {
    const { guard } = this.#path;
    if (guard?.isFinished === true) {
      // Only the end was missing, and no engine is needed for it.
      this.#path.finishResumed(guard);
      abandon(this.#open.parts, this.#open.placement);
      this.#step({ kind: "answer_ended" });
      return;
    }
    this.#step({ kind: "begin" });
  }

  /** Whether the request runs on two engines. */
  get mode(): "whole" | "pair" {
    return this.#open.mode;
  }

  /** Whether the request is guarded now. */
  get isGuarded(): boolean {
    return this.#path.guard !== undefined;
  }

  /** Ends what takes too long; called a few times a second. */
  tick(now: number): void {
    if (now >= this.#requestDeadline) {
      this.#step({ kind: "overdue" });
      return;
    }
    this.#path.tick(now);
    switch (this.#wait.takeOverdue(now)) {
      case undefined:
        return;
      case "prefill":
        this.#legs.stop("prefill");
        this.onFailed("prefill", "timeout", "no answer in time");
        return;
      case "first_byte":
        // A guarded stream waits for as long as its forecast makes likely, and then tries elsewhere.
        this.#path.stop(this.isGuarded ? "frozen" : "timeout", "no first byte in time");
        return;
      case "stream":
        this.#path.stop("frozen", "no byte in time");
        return;
      case "slow_reader":
        this.onGone();
        this.#writer.destroy();
        return;
      case "placing":
        this.#step({ kind: "not_placed", code: "worker_lost", why: "no router answered in time" });
        return;
    }
  }

  onGone(): void {
    this.#step({ kind: "client_gone" });
  }

  onDrain(): void {
    this.#open.spans.stream?.resumed();
    this.#legs.answer?.call?.resume();
    if (this.#wait.phase === "slow_reader") this.#wait.start("stream", this.#path.silenceMs);
  }

  /** Moves a guarded stream off an engine that drains. */
  leaveWorker(workerId: string): void {
    if (this.#legs.answer?.leg.workerId !== workerId || !this.#run.isPassing) return;
    if (this.isGuarded) this.#path.stop("drained", "the engine drains");
  }

  onAnswerData(record: LegRecord, chunk: Buffer): void {
    this.#path.data(record, chunk);
  }

  onAnswerEnd(record: LegRecord): void {
    this.#path.end(record);
  }

  onPrefillEnd(record: LegRecord): void {
    if (record.status !== 200) {
      const why = record.takeComplaint();
      this.#step({ kind: "prefill_failed", outcome: "engine_error", why });
      return;
    }
    const { pair } = this.#open.planned;
    const bytes = record.takeWhole();
    // With legs that run at once decode may have answered, and nothing is read of prefill any more.
    const reading: PrefillReading =
      pair !== undefined && isUtf8(bytes)
        ? pair.adapter.readPrefill(pair.request, bytes)
        : { kind: "none", why: "the answer is not UTF-8" };
    if (reading.kind === "handoff") this.#open.spans.offered(reading.blocks);
    if (reading.kind !== "none") record.usage = { ...reading.usage, generatedTokens: -1 };
    this.#legs.handoffMade();
    this.#step({ kind: "prefill_read", reading });
  }

  onFailed(slot: LegSlot, outcome: LegOutcome, why: string): void {
    if (slot === "answer") this.#path.failed(outcome, why);
    else this.#step({ kind: "prefill_failed", outcome, why });
  }

  /** Plans the legs of the present placement, or the rest of a stream that has begun elsewhere. */
  #plan(isResumed: boolean): void {
    const open = this.#open;
    const { guard, unguardedReason = "not_asked" } = this.#path;
    open.planned = planPlacement(open.parts, open.placement, guard?.body ?? open.body);
    if (isResumed) {
      if (guard === undefined) {
        throw new MeshError("resume_lost", `the stream cannot be resumed: ${unguardedReason}`);
      }
      guard.takeOver();
    }
    const rest = guard?.planRest(open);
    if (rest === undefined) return;
    // The rest of a stream runs whole, wherever it was placed.
    open.planned = rest;
    this.#legs.skipPrefill();
  }

  #step(event: RunEvent): void {
    const effects = this.#run.step(event);
    for (const effect of effects) this.#carryOut(effect);
    this.#legs.tellEnded(effects.some(({ kind }) => kind === "over" || kind === "place_again"));
  }

  #carryOut(effect: RunEffect): void {
    switch (effect.kind) {
      case "send":
        this.#legs.send(effect.leg, effect.body, {
          local: effect.local,
          offset: this.#path.guard?.stream.sentCount ?? 0,
        });
        if (effect.leg === "answer") this.#wait.start("first_byte", this.#path.firstByteMs);
        else this.#wait.start("prefill", this.#open.parts.config.deadlines.prefillMs);
        return;
      case "abort":
        this.#legs.abort(effect.leg, effect.handoff);
        return;
      case "leg_ended":
        this.#legs.ended(effect.leg, effect.outcome, effect.why);
        return;
      case "pass":
        this.#pass();
        return;
      case "answer":
        this.#open.firstByteAt = this.#open.parts.clock.now();
        this.#firstByte(undefined);
        this.#open.spans.stream?.piece(effect.bytes.length);
        this.#writer.whole(effect.bytes);
        return;
      case "place_again":
        void this.#placeAgain(effect.excluded);
        return;
      case "fail":
        this.#writer.fail(new MeshError(effect.code, effect.message));
        return;
      case "break":
        this.#writer.break(new MeshError(effect.code, effect.message));
        return;
      case "over":
        this.#over(effect.outcome);
        return;
    }
  }

  #pass(): void {
    const open = this.#open;
    const { parts } = open;
    const record = this.#legs.answer;
    if (record === undefined) return;
    const isFirst = open.firstByteAt === 0;
    this.#path.pass(record);
    if (!isFirst) return;
    this.#firstByte(record);
    const { ttftMs } = open;
    parts.metrics.ttftSeconds.observe({ mode: open.mode }, ttftMs / 1_000);
    this.#legs.answerBegan();
    const now = open.firstByteAt;
    parts.notify(
      record.notice(open.placement, { ended: false, outcome: "done", ttftMs, last: false, now }),
    );
  }

  /** Tells where the time to the first byte went. `record`: the leg that it came from; prefill's for none. */
  #firstByte(record: LegRecord | undefined): void {
    const open = this.#open;
    const parts = open.timeline?.firstByte(open.firstByteAt, open.placement.forecast.itlMs);
    open.timeline = undefined;
    if (parts === undefined) return;
    if (record !== undefined) record.transferMs = parts.transferMs;
    open.spans.firstByte(parts, open.ttftMs);
  }

  #endSpans(outcome: RequestOutcome): void {
    const { spans, body, mode, ttftMs } = this.#open;
    const { guard, unguardedReason } = this.#path;
    spans.ended({
      outcome,
      mode,
      placements: this.#placements,
      ...(body.stream ? { guard: { isOn: guard !== undefined, reason: unguardedReason } } : {}),
      tokens: guard?.stream.sentCount,
      ttftMs,
    });
  }

  #over(outcome: RequestOutcome): void {
    const { parts, mode, arrivedAt } = this.#open;
    const { metrics, clock } = parts;
    metrics.requests.inc({ mode, outcome });
    if (outcome === "done") {
      metrics.requestSeconds.observe({ mode }, (clock.now() - arrivedAt) / 1_000);
    }
    this.#wait.stop();
    this.#placing?.abort();
    this.#endSpans(outcome);
    this.#path.guard?.ended(outcome === "done");
    this.#onOver(this);
  }

  async #placeAgain(excluded: readonly string[]): Promise<void> {
    const { parts } = this.#open;
    this.#wait.start("placing", parts.config.deadlines.placeMs + 100);
    this.#placing = new AbortController();
    const given = await placeAgain(this.#open, excluded, this.#placing.signal);
    this.#placing = undefined;
    if (given.kind === "not_placed") {
      this.#step(given);
      return;
    }
    const { placement } = given;
    if (this.#run.isOver) {
      abandon(parts, placement);
      return;
    }
    const before = this.#open.placement;
    try {
      this.#open.placement = placement;
      this.#plan(false);
    } catch (error) {
      this.#open.placement = before;
      abandon(parts, placement);
      const { code, message } = toMeshError(error);
      this.#step({ kind: "not_placed", code, why: message });
      return;
    }
    this.#placements++;
    this.#step({ kind: "placed", plan: this.#open.planned.plan });
  }
}
