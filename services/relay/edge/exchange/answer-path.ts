import { isEngineFailure, isErrorEvent } from "../../core/request/answer-start.ts";
import type { UnguardedReason } from "../../core/guard/guard-policy.ts";
import type { ResumedFrom } from "../../core/guard/guarded-stream.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { RequestRun, RunEvent } from "../../core/request/request-run.ts";
import { readTailUsage } from "../../core/request/tail-usage.ts";
import { returnedFields } from "../leg-call.ts";
import type { LegRecord } from "../leg-record.ts";
import type { ClientWriter } from "./client-writer.ts";
import type { Legs } from "./legs.ts";
import type { OpenRequest } from "./open-request.ts";
import type { PhaseWait } from "./phase-wait.ts";
import { openGuard, type StreamGuard } from "./stream-guard.ts";

/** Largest error of an engine that is read, bytes. */
const errorBytesMax = 16 << 10;
/** How many times longer the next engine's first token is waited for. */
const laterMultiple = 4;

/** How long an engine may take to end its answer behind the last event, ms. */
const closingMs = 1_000;

const usageName = Buffer.from('"usage":{');

/** What the way of an answer needs of its request. */
export interface AnswerPathOptions {
  readonly open: OpenRequest;
  readonly writer: ClientWriter;
  readonly wait: PhaseWait;
  /** A stream of another relay to go on with. */
  readonly resumed: ResumedFrom | undefined;
  legs(): Legs;
  run(): RequestRun;
  step(event: RunEvent): void;
}

/** The way of an answer from its engine to the client: judged at its beginning, then passed on as it is, or guarded. */
export class AnswerPath {
  readonly #options: AnswerPathOptions;
  readonly #open: OpenRequest;
  readonly #writer: ClientWriter;
  readonly #wait: PhaseWait;
  #guard: StreamGuard | undefined;
  #unguardedReason: UnguardedReason | undefined;
  /** Status of an answer that is asked for anew behind the client's head, until the new one's first bytes are judged. */
  #reopenedFrom: number | undefined;
  /** Engines that were given up since their first token was late. */
  #lateStarts = 0;

  constructor(options: AnswerPathOptions) {
    const { open, resumed } = options;
    this.#options = options;
    this.#open = open;
    this.#writer = options.writer;
    this.#wait = options.wait;
    if (!open.body.stream) return;
    const { placement, body } = open;
    const { traceparent } = open.spans;
    const opening = openGuard(open.parts, { placement, body, traceparent }, resumed);
    if (opening.kind === "on") {
      this.#guard = opening.guard;
      opening.guard.onConfirmed = () => {
        if (this.#guard !== undefined && !this.#options.run().isOver) this.#letGo(this.#guard);
      };
    } else this.#unguardedReason = opening.reason;
  }

  /** The guard, while the stream has one. */
  get guard(): StreamGuard | undefined {
    return this.#guard;
  }

  get unguardedReason(): UnguardedReason | undefined {
    return this.#unguardedReason;
  }

  /**
   * Longest wait for the first byte of an answer, ms. Where one engine was late the next may be as well, since it is load
   * rather than a fault that makes several so: it is given more time, so that no request runs out of engines that work.
   */
  get firstByteMs(): number {
    const { firstByteMs } = this.#open.parts.config.deadlines;
    const firstTokenMs = this.#guard?.firstTokenMs(this.#open.placement.forecast) ?? firstByteMs;
    return Math.min(firstByteMs, firstTokenMs * laterMultiple ** this.#lateStarts);
  }

  /** Longest wait for the next bytes of an answer, ms. */
  get silenceMs(): number {
    const { placement, firstByteAt, parts } = this.#open;
    return (
      this.#guard?.freezeMs(placement.forecast, firstByteAt) ?? parts.config.deadlines.silenceMs
    );
  }

  /** A piece of the engine's answer. */
  data(record: LegRecord, chunk: Buffer): void {
    const { status } = record;
    if (!this.#options.run().isPassing) {
      if (isEngineFailure(status)) {
        record.gather(chunk, errorBytesMax);
        return;
      }
      if (this.#open.body.stream && isErrorEvent(chunk)) {
        this.stop("engine_error", chunk.toString("utf8", 0, 200).trimEnd());
        return;
      }
      if (!this.#begin(record)) return;
    }
    if (this.#reopenedFrom !== undefined) {
      if (status !== this.#reopenedFrom || isErrorEvent(chunk)) {
        const text = chunk.toString("utf8", 0, 200).trimEnd();
        this.stop("engine_error", `status ${String(status)}: ${text}`);
        return;
      }
      this.#reopenedFrom = undefined;
    }
    if (this.#guard !== undefined) {
      this.#guardedData(this.#guard, record, chunk);
      return;
    }
    if (chunk.indexOf(usageName) >= 0) record.usage = readTailUsage(chunk);
    this.#write(chunk);
  }

  /** The engine's answer is over. */
  end(record: LegRecord): void {
    const options = this.#options;
    if (this.#guard !== undefined && options.run().isPassing) {
      this.#guard.stream.ended();
      this.failed("lost", this.#guard.stream.failure);
      return;
    }
    if (isEngineFailure(record.status)) {
      options.step({ kind: "answer_failed", outcome: "engine_error", why: record.takeComplaint() });
      return;
    }
    // An answer without a body still has a head.
    if (!options.run().isPassing && !this.#begin(record)) return;
    this.#writer.end();
    options.step({ kind: "answer_ended" });
  }

  /** The answering leg failed. A guarded stream goes on elsewhere, unless only its end was missing. */
  failed(outcome: LegOutcome, why: string): void {
    const options = this.#options;
    const guard = this.#guard;
    if (guard === undefined || !options.run().isPassing) {
      options.step({ kind: "answer_failed", outcome, why });
      return;
    }
    const then = guard.lost(outcome);
    this.#writeGuarded(guard, then !== "can_continue");
    if (then === "finished") {
      this.#writer.end();
      options.step({ kind: "answer_ended", outcome });
      return;
    }
    options.step({ kind: "answer_failed", outcome, why, canContinue: then === "can_continue" });
  }

  /** Stops the answering leg from this side, and says that it failed. */
  stop(outcome: LegOutcome, why: string): void {
    this.#options.legs().stop("answer");
    if (outcome === "frozen" && this.#open.firstByteAt === 0) this.#lateStarts++;
    this.failed(outcome, why);
  }

  /** The answer is good so far: its head goes to the client, unless it has one already. */
  pass(record: LegRecord): void {
    const open = this.#open;
    const { headers = {} } = record;
    const now = open.parts.clock.now();
    record.firstByteAt = now;
    record.headers = undefined;
    if (open.firstByteAt > 0) return;
    open.firstByteAt = now;
    const { stream } = open.body;
    if (this.#guard === undefined) open.forget();
    const fields = returnedFields(headers);
    const length = headers["content-length"];
    if (!stream && length !== undefined) fields.push(["content-length", length]);
    this.#writer.head(record.status, fields, this.#guardState);
  }

  /** Writes a resumed stream of which only the end was missing. */
  finishResumed(guard: StreamGuard): void {
    const fields = [["content-type", "text/event-stream; charset=utf-8"]] as const;
    this.#writer.head(200, fields, this.#guardState);
    this.#writeGuarded(guard, true);
    this.#writer.end();
  }

  /** The answer begins, unless it cannot follow what the client has already. */
  #begin(record: LegRecord): boolean {
    const guard = this.#guard;
    if (guard !== undefined && record.status !== 200) {
      if (this.#open.firstByteAt > 0) {
        this.stop("engine_error", `status ${String(record.status)} instead of the rest`);
        return false;
      }
      // What an engine refuses, every other one would: its word is the client's answer.
      this.#release(guard, "status");
    }
    this.#options.step({ kind: "answer_began" });
    return true;
  }

  get #guardState(): string {
    return this.#guard === undefined ? `off; reason=${this.#unguardedReason ?? ""}` : "on";
  }

  #guardedData(guard: StreamGuard, record: LegRecord, chunk: Buffer): void {
    const { stream } = guard;
    const before = stream.sentCount;
    const verdict = guard.receive(chunk);
    const isEnd = verdict === "finished" || verdict === "unguarded";
    if (!this.#writeGuarded(guard, isEnd)) this.#wait.start("stream", this.silenceMs);
    record.usage = { ...record.usage, generatedTokens: stream.sentCount };
    const moved = guard.grew(before);
    if (moved !== undefined) {
      const { workerId } = record.leg;
      this.#open.spans.stream?.migrated({ ...moved, workerId, offset: before });
    }
    switch (verdict) {
      case "more":
        return;
      case "failed":
        this.stop("engine_error", stream.failure);
        return;
      case "finished":
        this.#finish(guard, record);
        return;
      case "unguarded":
        this.#giveUp(guard, record, before);
        return;
    }
  }

  #finish({ stream }: StreamGuard, { call }: LegRecord): void {
    const { clock } = this.#open.parts;
    this.#writer.end();
    this.#options.step({ kind: "answer_ended" });
    if (call === undefined) return;
    if (!stream.hasEngineEnded) call.abort();
    else {
      // The connection can be used again when the answer ends as it should.
      void clock.sleep(closingMs).then(() => {
        call.abort();
      });
    }
  }

  /** The answer cannot be continued after all: the stream goes on without a guard. `told`: tokens that the client has. */
  #giveUp(guard: StreamGuard, record: LegRecord, told: number): void {
    const reason = guard.stream.unguardedReason ?? "unreadable";
    this.#release(guard, reason);
    if (!guard.looksForStops) {
      this.#open.forget();
      return;
    }
    // The engine was asked without the stop texts, so that it must begin anew with them.
    if (told > 0) {
      this.stop("engine_error", `the answer cannot be guarded: ${reason}`);
      return;
    }
    record.call?.abort();
    this.#reopenedFrom = record.status;
    this.#options.legs().ask(record, this.#open.raw);
    this.#wait.start("first_byte", this.firstByteMs);
    this.#open.forget();
  }

  /** The stream is not guarded any more. */
  #release(guard: StreamGuard, reason: UnguardedReason): void {
    this.#open.parts.metrics.guards.inc({ state: "off", reason });
    guard.givenUp();
    this.#guard = undefined;
    this.#unguardedReason = reason;
  }

  /** Ends waits that take too long; called a few times a second. */
  tick(now: number): void {
    this.#guard?.tick(now);
  }

  /** Sends what the guard has for the client; false when there is nothing, or it must wait. */
  #writeGuarded(guard: StreamGuard, isEnd: boolean): boolean {
    const events = guard.takeEvents(isEnd);
    if (events.length === 0) return false;
    this.#write(events);
    return true;
  }

  /** Sends what waited for the buddy; the wait for the engine goes on as it was. */
  #letGo(guard: StreamGuard): void {
    const events = guard.takeEvents(false);
    if (events.length === 0) return;
    if (this.#options.run().isPassing) this.#write(events);
    else this.#writer.write(events);
  }

  #write(bytes: Uint8Array): void {
    const { metrics, config } = this.#open.parts;
    const { stream } = this.#open.spans;
    stream?.piece(bytes.length);
    if (this.#writer.write(bytes)) {
      this.#wait.start("stream", this.silenceMs);
      return;
    }
    metrics.pauses.inc();
    stream?.paused();
    this.#options.legs().answer?.call?.pause();
    this.#wait.start("slow_reader", config.deadlines.slowReaderMs);
  }
}
