import type { IncomingHttpHeaders } from "node:http";
import { MeshError } from "../../shared/core/errors.ts";
import type { GuardSettings, Placement } from "../../shared/core/placement-token/placement.ts";
import {
  isPlacedBody,
  placementHeader,
  readPlacement,
} from "../../shared/core/placement-token/placement-token.ts";
import { openAiError, toMeshError, wire } from "../../shared/edge/wire.ts";
import { kindOfPath, readBody, type RelayedBody } from "../core/body/relayed-body.ts";
import { ScannedObject } from "../core/body/scanned-object.ts";
import type { PrefillReading } from "../core/engines/engine-adapter.ts";
import { isEngineFailure, isErrorEvent } from "../core/request/answer-start.ts";
import { isForwarded, type HeaderField } from "../core/request/forwarded-headers.ts";
import type { LegOutcome, LegSlot, LocalPrefillReason } from "../core/request/leg-outcome.ts";
import { continuationBody, continuationPath } from "../core/guard/continuation.ts";
import { findUnguardedReason, type UnguardedReason } from "../core/guard/guard-policy.ts";
import { guardedBody, readGuardRequest, type GuardRequest } from "../core/guard/guard-request.ts";
import { GuardedStream, type Cut, type ResumedFrom } from "../core/guard/guarded-stream.ts";
import { planRun, type PlannedRun } from "../core/request/plan-run.ts";
import { RequestRun, type RunEffect, type RunEvent } from "../core/request/request-run.ts";
import { readTailUsage } from "../core/request/tail-usage.ts";
import { wholeAsStream } from "../core/request/whole-as-stream.ts";
import { abandon } from "./abandon.ts";
import { hash, isUtf8 } from "./body-checks.ts";
import type { AnswerListener, ClientAnswer, ClientRequest } from "./client-exchange.ts";
import { LegCall, returnedFields } from "./leg-call.ts";
import { LegRecord } from "./leg-record.ts";
import type { StreamMirror } from "./mirror-links.ts";
import type { RelayParts } from "./relay-parts.ts";

/** Largest answer of a prefill leg, and of an engine's error, bytes. */
const prefillAnswerBytesMax = 32 << 20;
const errorBytesMax = 16 << 10;
/** A leg with a hand-off is given this long to reach its engine before it is stopped, ms. */
const handoffReachMs = 50;

const usageName = Buffer.from('"usage":{');
const eventEnd = Buffer.from("\n\n");
const nothing = new Uint8Array(0);

/** A frozen first token is waited for at least so long, and so many times as long as was forecast. */
const firstTokenMsMin = 2_000;
const firstTokenMultiple = 8;
/** How long an engine may take to end its answer behind the last event, ms. */
const closingMs = 1_000;

/** A stream that is guarded: its state, what it asks for, and the body that engines get. */
interface Guard {
  readonly stream: GuardedStream;
  readonly request: GuardRequest;
  readonly body: RelayedBody;
  /** Absent when no other relay is there. */
  readonly mirror: StreamMirror | undefined;
}

/** How a stream is guarded that came to be resumed with a placement that asks for no guard. */
const resumedGuard: GuardSettings = {
  freezeItlMultiple: 20,
  freezeMsMin: 1_000,
  migrationsMax: 3,
};

type Phase = "prefill" | "first_byte" | "stream" | "slow_reader" | "placing";

/** One request on its way through the relay. */
export class Exchange implements AnswerListener {
  readonly #parts: RelayParts;
  readonly #request: ClientRequest;
  /** The body as it came, for placing the request again; dropped once the answer passes. */
  #raw: Uint8Array;
  readonly #answer: ClientAnswer;
  #body: RelayedBody;
  readonly #run: RequestRun;
  readonly #arrivedAt: number;
  readonly #requestDeadline: number;
  readonly #onOver: (exchange: Exchange) => void;
  readonly #pending: { record: LegRecord; outcome: LegOutcome }[] = [];
  #placement: Placement;
  #planned: PlannedRun;
  readonly #legs: Record<LegSlot, LegRecord | undefined> = {
    prefill: undefined,
    answer: undefined,
  };
  /** Pieces of an answer that is read whole: a prefill leg's, or an engine's error. */
  #whole: Buffer[] = [];
  #wholeBytes = 0;
  #head: { status: number; headers: IncomingHttpHeaders } | undefined;
  #phase: Phase = "prefill";
  #deadlineAt = Infinity;
  #firstByteAt = 0;
  #guard: Guard | undefined;
  #unguardedReason: UnguardedReason | undefined;
  /** How a guarded stream goes on where it is placed next, and since when it stands still. */
  #cut: Cut | undefined;
  #lostAt = 0;
  #lostBy: LegOutcome = "lost";
  #path: string;
  #isAtEventEnd = true;
  /** Status of an answer that is asked for anew behind the client's head, until the new one's first bytes are judged. */
  #reopenedFrom: number | undefined;
  /** Hand-off that waits for decode, as the book of hand-offs numbers it; 0 for none. */
  #handoff = 0;

  constructor(options: {
    readonly parts: RelayParts;
    readonly request: ClientRequest;
    readonly answer: ClientAnswer;
    readonly placement: Placement;
    readonly body: RelayedBody;
    readonly arrivedAt: number;
    /** A stream of another relay to go on with. */
    readonly resumed?: ResumedFrom;
    readonly onOver: (exchange: Exchange) => void;
  }) {
    const { parts, answer, placement, body, arrivedAt } = options;
    this.#parts = parts;
    this.#request = options.request;
    this.#raw = options.request.body;
    this.#answer = answer;
    this.#placement = placement;
    this.#body = body;
    this.#arrivedAt = arrivedAt;
    this.#onOver = options.onOver;
    this.#path = options.request.path;
    this.#requestDeadline = arrivedAt + parts.config.deadlines.requestMs;
    if (body.stream) this.#beginGuard(options.resumed);
    try {
      this.#planned = this.#plan(placement);
      if (options.resumed !== undefined) this.#resume();
    } catch (error) {
      this.#guard?.mirror?.ended(true);
      throw error;
    }
    this.#run = new RequestRun(this.#planned.plan, parts.config.limits.placementsMax);
    answer.listener = this;
  }

  /** Begins the first leg. */
  begin(): void {
    const guard = this.#guard;
    if (guard !== undefined && this.#cut?.kind === "finished") {
      // Only the end was missing, and no engine is needed for it.
      this.#sendHead(200, [["content-type", "text/event-stream; charset=utf-8"]]);
      this.#writeGuarded(guard.stream);
      this.#answer.end();
      abandon(this.#parts, this.#placement);
      this.#step({ kind: "answer_ended" });
      return;
    }
    this.#step({ kind: "begin" });
  }

  /** Plans the rest of a stream that another relay began. Throws `resume_lost` when it cannot be gone on with. */
  #resume(): void {
    const guard = this.#guard;
    if (guard === undefined) {
      const reason = this.#unguardedReason ?? "not_asked";
      throw new MeshError("resume_lost", `the stream cannot be resumed: ${reason}`);
    }
    const cut = guard.stream.cut();
    this.#cut = cut;
    if (cut.kind === "continue") this.#planned = this.#planContinuation(cut);
  }

  /** Whether the request runs on two engines. */
  get mode(): "whole" | "pair" {
    return this.#placement.legs.length === 2 ? "pair" : "whole";
  }

  /** Ends what takes too long; called a few times a second. */
  tick(now: number): void {
    if (now >= this.#requestDeadline) {
      this.#step({ kind: "overdue" });
      return;
    }
    if (now < this.#deadlineAt) return;
    this.#deadlineAt = Infinity;
    switch (this.#phase) {
      case "prefill":
        this.#stop("prefill", "timeout", "no answer in time");
        return;
      case "first_byte":
        // A guarded stream waits for as long as its forecast makes likely, and then tries elsewhere.
        this.#stop(
          "answer",
          this.#guard === undefined ? "timeout" : "frozen",
          "no first byte in time",
        );
        return;
      case "stream":
        this.#stop("answer", "frozen", "no byte in time");
        return;
      case "slow_reader":
        this.onGone();
        this.#answer.destroy();
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
    this.#legs.answer?.call?.resume();
    if (this.#phase === "slow_reader") {
      this.#wait("stream", this.#silenceMs());
    }
  }

  /** Moves a guarded stream off an engine that drains. */
  leaveWorker(workerId: string): void {
    const record = this.#legs.answer;
    if (record?.leg.workerId !== workerId || !this.#run.isPassing) return;
    if (this.#guard !== undefined) this.#stop("answer", "drained", "the engine drains");
  }

  /** Whether the request is guarded now. */
  get isGuarded(): boolean {
    return this.#guard !== undefined;
  }

  #beginGuard(resumed: ResumedFrom | undefined): void {
    const { adapters, json, metrics } = this.#parts;
    const placement = this.#placement;
    const [leg] = placement.legs;
    if (leg === undefined) return;
    const body = this.#body;
    const settings = placement.guard ?? (resumed === undefined ? undefined : resumedGuard);
    const reason = findUnguardedReason(body, settings, adapters[leg.engine].tellsTokenIds);
    if (reason !== undefined) {
      this.#unguardedReason = reason;
      if (reason !== "not_asked") metrics.guards.inc({ state: "off", reason });
      return;
    }
    metrics.guards.inc({ state: "on", reason: "" });
    const request = readGuardRequest(body);
    const facts = { kind: body.kind, salted: placement.salted };
    if (settings !== undefined) this.#placement = { ...placement, guard: settings };
    const mirror = this.#parts.mirrors.open(placement.bodySha256);
    const stream = new GuardedStream({
      request,
      cachedTokens: -1,
      ...(mirror === undefined ? {} : { nameOf: (point) => mirror.nameOf(point) }),
      ...(resumed === undefined ? {} : { resumed }),
    });
    mirror?.follow(stream);
    const guarded = readBody(json, guardedBody(body), facts);
    this.#guard = { request, body: guarded, stream, mirror };
  }

  #plan(placement: Placement): PlannedRun {
    const { adapters, handoffs, random } = this.#parts;
    const [first] = placement.legs;
    let refuse: LocalPrefillReason | undefined;
    if (first?.role === "prefill") {
      const standing = this.#parts.topology.judge(first);
      if (standing === "stale" || standing === "unknown") refuse = "prefill_failed";
      else if (!handoffs.hasRoom(first.workerId, placement.forecast.promptTokens)) {
        refuse = "handoff_full";
      }
    }
    const answering = placement.legs[placement.legs.length - 1];
    if (answering !== undefined) {
      const standing = this.#parts.topology.judge(answering);
      if (standing === "stale" || standing === "unknown") {
        throw new MeshError(
          "stale_epoch",
          `${answering.workerId} at ${answering.address} is ${
            standing === "stale" ? "in another life" : "no member any more"
          }; ask for a new placement`,
        );
      }
    }
    const room = Math.floor(random.next() * 2 ** 31);
    const body = this.#guard?.body ?? this.#body;
    return planRun(adapters, placement, { body, room, refuse });
  }

  #step(event: RunEvent): void {
    const effects = this.#run.step(event);
    for (const effect of effects) this.#carryOut(effect);
    this.#flush(effects.some(({ kind }) => kind === "over" || kind === "place_again"));
  }

  #carryOut(effect: RunEffect): void {
    switch (effect.kind) {
      case "send":
        this.#send(effect.leg, effect.body, effect.local);
        return;
      case "abort":
        this.#abort(effect.leg, effect.handoff);
        return;
      case "leg_ended":
        this.#legEnded(effect.leg, effect.outcome, effect.why);
        return;
      case "pass":
        this.#pass();
        return;
      case "answer":
        this.#answerWhole(effect.bytes);
        return;
      case "place_again":
        this.#placeAgain(effect.excluded);
        return;
      case "fail":
        sendError(this.#answer, new MeshError(effect.code, effect.message));
        return;
      case "break":
        this.#break(new MeshError(effect.code, effect.message));
        return;
      case "over": {
        const { metrics, clock } = this.#parts;
        const { mode } = this;
        metrics.requests.inc({ mode, outcome: effect.outcome });
        if (effect.outcome === "done") {
          metrics.requestSeconds.observe({ mode }, (clock.now() - this.#arrivedAt) / 1_000);
        }
        this.#deadlineAt = Infinity;
        this.#guard?.mirror?.ended(effect.outcome === "done");
        this.#onOver(this);
        return;
      }
    }
  }

  #send(slot: LegSlot, body: Uint8Array, local: LocalPrefillReason | undefined): void {
    const { clock, handoffs, metrics, config } = this.#parts;
    const { legs } = this.#placement;
    const leg = slot === "prefill" ? legs[0] : legs[legs.length - 1];
    if (leg === undefined) return;
    const now = clock.now();
    const record = new LegRecord(slot, leg, now);
    if (slot === "prefill") {
      record.handoff = handoffs.add(leg.workerId, this.#placement.forecast.promptTokens);
    } else if (local !== undefined) {
      record.localPrefill = true;
      metrics.localPrefills.inc({ reason: local });
    }
    this.#legs[slot] = record;
    this.#whole = [];
    this.#wholeBytes = 0;
    this.#open(record, body);
    const { prefillMs, firstByteMs } = config.deadlines;
    if (slot === "prefill") this.#wait("prefill", prefillMs);
    else this.#wait("first_byte", this.#guard === undefined ? firstByteMs : this.#firstTokenMs());
  }

  /** Sends a leg's request. */
  #open(record: LegRecord, body: Uint8Array): void {
    const { clock, pools } = this.#parts;
    const { slot } = record;
    const { address, dpRank } = record.leg;
    try {
      const pool = pools.take(address, clock.now());
      const call = new LegCall(
        {
          onHead: (status, headers) => {
            this.#legHead(record, status, headers);
          },
          onData: (chunk) => {
            if (slot === "answer") this.#answerData(record, chunk);
            else this.#gather(record, chunk, prefillAnswerBytesMax);
          },
          onEnd: () => {
            this.#legEnd(record);
          },
          onFailure: (outcome, why) => {
            this.#failed(slot, outcome, why);
          },
        },
        () => {
          pools.release(address, clock.now());
        },
      );
      record.call = call;
      const path = slot === "answer" ? this.#path : this.#request.path;
      call.start(pool, { path, headers: this.#engineHeaders(dpRank), body });
    } catch (error) {
      const { code, message } = toMeshError(error);
      if (code === "invariant_violated") throw error;
      const outcome: LegOutcome = code === "overloaded" ? "engine_error" : "stale";
      queueMicrotask(() => {
        this.#step({ kind: `${slot}_failed`, outcome, why: message });
      });
    }
  }

  /** A leg failed. A guarded stream goes on elsewhere, unless only its end was missing. */
  #failed(slot: LegSlot, outcome: LegOutcome, why: string): void {
    const guard = this.#guard;
    if (slot === "prefill" || guard === undefined || !this.#run.isPassing) {
      this.#step({ kind: `${slot}_failed`, outcome, why });
      return;
    }
    const { metrics, clock } = this.#parts;
    const cut = guard.stream.cut();
    this.#writeGuarded(guard.stream);
    if (cut.kind === "finished") {
      this.#answer.end();
      this.#step({ kind: "answer_ended", outcome });
      return;
    }
    this.#cut = cut;
    this.#lostAt = clock.now();
    this.#lostBy = outcome;
    const tried = guard.stream.losses;
    const canContinue = tried <= (this.#placement.guard?.migrationsMax ?? 0);
    if (!canContinue) metrics.migrations.inc({ cause: outcome, outcome: "failed" });
    this.#step({ kind: "answer_failed", outcome, why, canContinue });
  }

  /** Longest wait for the first token of a guarded stream, ms. */
  #firstTokenMs(): number {
    const { guard, forecast } = this.#placement;
    return Math.min(
      this.#parts.config.deadlines.firstByteMs,
      Math.max(
        firstTokenMsMin,
        guard?.freezeMsMin ?? 0,
        firstTokenMultiple * (forecast.ttftMs + forecast.prefillMs),
      ),
    );
  }

  /** Longest wait for the next token, ms. */
  #freezeMs(stream: GuardedStream): number {
    const { guard, forecast } = this.#placement;
    if (guard === undefined) return this.#parts.config.deadlines.silenceMs;
    const sent = stream.sentCount;
    if (sent === 0) return this.#firstTokenMs();
    // An engine that is slower than forecast all the time is not frozen.
    const meanMs = (this.#parts.clock.now() - this.#firstByteAt) / sent;
    return Math.max(guard.freezeMsMin, guard.freezeItlMultiple * Math.max(forecast.itlMs, meanMs));
  }

  #engineHeaders(dpRank: number | undefined): HeaderField[] {
    const headers: HeaderField[] = [];
    let hasId = false;
    for (const field of this.#request.fields()) {
      if (!isForwarded(field[0])) continue;
      if (field[0] === "x-request-id") hasId = true;
      headers.push(field);
    }
    if (!hasId) headers.push(["x-request-id", this.#placement.decisionId]);
    if (dpRank !== undefined) headers.push(["x-data-parallel-rank", String(dpRank)]);
    return headers;
  }

  #legHead(record: LegRecord, status: number, headers: IncomingHttpHeaders): void {
    record.status = status;
    if (record.slot === "answer") this.#head = { status, headers };
  }

  /** Keeps a piece of an answer that is read whole. */
  #gather(record: LegRecord, chunk: Buffer, bytesMax: number): void {
    this.#wholeBytes += chunk.length;
    if (this.#wholeBytes <= bytesMax) {
      this.#whole.push(chunk);
      return;
    }
    if (record.slot === "prefill") {
      this.#stop("prefill", "no_handoff", `answered more than ${String(bytesMax)} bytes`);
    }
  }

  #answerData(record: LegRecord, chunk: Buffer): void {
    const head = this.#head;
    if (head === undefined) return;
    if (!this.#run.isPassing) {
      if (isEngineFailure(head.status)) {
        this.#gather(record, chunk, errorBytesMax);
        return;
      }
      if (this.#body.stream && isErrorEvent(chunk)) {
        const why = chunk.toString("utf8", 0, 200).trimEnd();
        this.#stop("answer", "engine_error", why);
        return;
      }
      this.#step({ kind: "answer_began" });
    }
    if (this.#reopenedFrom !== undefined) {
      if (head.status !== this.#reopenedFrom || isErrorEvent(chunk)) {
        const text = chunk.toString("utf8", 0, 200).trimEnd();
        this.#stop("answer", "engine_error", `status ${String(head.status)}: ${text}`);
        return;
      }
      this.#reopenedFrom = undefined;
    }
    if (this.#guard !== undefined) {
      this.#guardedData(this.#guard, record, chunk);
      return;
    }
    if (chunk.indexOf(usageName) >= 0) record.usage = readTailUsage(chunk);
    this.#isAtEventEnd =
      chunk.length >= 2 && chunk[chunk.length - 1] === 0x0a && chunk[chunk.length - 2] === 0x0a;
    this.#write(chunk);
  }

  #guardedData(guard: Guard, record: LegRecord, chunk: Buffer): void {
    const { stream } = guard;
    const before = stream.sentCount;
    const verdict = stream.receive(chunk);
    const asksAnew = verdict === "unguarded" && guard.request.stops.length > 0;
    // What came with the reason is not looked through for stop texts, and comes again from the engine that is asked anew.
    if (asksAnew) stream.takeOutput();
    const isWritten = !asksAnew && this.#writeGuarded(stream);
    if (!isWritten) this.#wait("stream", this.#freezeMs(stream));
    record.usage = { ...record.usage, generatedTokens: stream.sentCount };
    if (stream.sentCount > before) guard.mirror?.grew();
    this.#parts.metrics.guardedTokens.inc(stream.sentCount - before);
    if (this.#lostAt > 0 && stream.sentCount > before) this.#wentOn();
    switch (verdict) {
      case "more":
        return;
      case "failed":
        this.#stop("answer", "engine_error", stream.failure);
        return;
      case "finished":
        this.#finishGuarded(record, stream);
        return;
      case "unguarded":
        this.#giveGuardUp(guard, record, before);
        return;
    }
  }

  /** The first token after a change of engines went out. */
  #wentOn(): void {
    const { metrics, clock } = this.#parts;
    metrics.migrations.inc({ cause: this.#lostBy, outcome: "continued" });
    metrics.migrationSeconds.observe((clock.now() - this.#lostAt) / 1_000);
    this.#lostAt = 0;
    this.#cut = undefined;
  }

  #finishGuarded(record: LegRecord, stream: GuardedStream): void {
    const { call } = record;
    const { clock } = this.#parts;
    this.#answer.end();
    this.#step({ kind: "answer_ended" });
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
  #giveGuardUp(guard: Guard, record: LegRecord, told: number): void {
    const { metrics, config } = this.#parts;
    const { stream, request } = guard;
    const reason = stream.unguardedReason ?? "unreadable";
    metrics.guards.inc({ state: "off", reason });
    guard.mirror?.ended(true);
    this.#guard = undefined;
    this.#unguardedReason = reason;
    if (request.stops.length === 0) {
      this.#forget();
      return;
    }
    // The engine was asked without the stop texts, so that it must begin anew with them.
    if (told > 0) {
      this.#stop("answer", "engine_error", `the answer cannot be guarded: ${reason}`);
      return;
    }
    record.call?.abort();
    this.#reopenedFrom = record.status;
    this.#open(record, this.#raw);
    this.#wait("first_byte", config.deadlines.firstByteMs);
    this.#forget();
  }

  /** Lets go of what only a stream that can be placed again needs. */
  #forget(): void {
    this.#raw = nothing;
    const { kind, stream } = this.#body;
    this.#body = { kind, stream, object: new ScannedObject(nothing, [], { open: 0, close: 0 }) };
    this.#planned = { plan: { kind: "whole", body: nothing, workerId: "" } };
  }

  /** Sends what the guard has for the client; false when there is nothing. */
  #writeGuarded(stream: GuardedStream): boolean {
    const output = stream.takeOutput();
    if (output.length === 0) return false;
    this.#isAtEventEnd = true;
    // The guard's memory is used again at once.
    this.#write(Buffer.from(output));
    return true;
  }

  #write(bytes: Uint8Array): void {
    const { metrics, config } = this.#parts;
    metrics.clientBytes.inc(bytes.length);
    if (this.#answer.write(bytes)) {
      this.#wait("stream", this.#silenceMs());
      return;
    }
    metrics.pauses.inc();
    this.#legs.answer?.call?.pause();
    this.#wait("slow_reader", config.deadlines.slowReaderMs);
  }

  /** Longest wait for the next bytes of the answer, ms. */
  #silenceMs(): number {
    return this.#guard === undefined
      ? this.#parts.config.deadlines.silenceMs
      : this.#freezeMs(this.#guard.stream);
  }

  #legEnd(record: LegRecord): void {
    if (this.#legs[record.slot] !== record) return;
    if (record.slot === "prefill") {
      this.#prefillEnd(record);
      return;
    }
    if (this.#guard !== undefined && this.#run.isPassing) {
      this.#guard.stream.ended();
      this.#failed("answer", "lost", this.#guard.stream.failure);
      return;
    }
    const head = this.#head;
    if (head !== undefined && isEngineFailure(head.status)) {
      this.#step({ kind: "answer_failed", outcome: "engine_error", why: this.#engineSaid(record) });
      return;
    }
    // An answer without a body still has a head.
    if (!this.#run.isPassing) this.#step({ kind: "answer_began" });
    this.#answer.end();
    this.#step({ kind: "answer_ended" });
  }

  #engineSaid(record: LegRecord): string {
    const text = Buffer.concat(this.#whole).toString("utf8", 0, 300);
    return `${record.leg.workerId} answered ${String(record.status)}: ${text}`;
  }

  #prefillEnd(record: LegRecord): void {
    const { pair } = this.#planned;
    if (record.status !== 200) {
      const why = this.#engineSaid(record);
      this.#step({ kind: "prefill_failed", outcome: "engine_error", why });
      return;
    }
    const bytes = Buffer.concat(this.#whole);
    this.#whole = [];
    // With legs that run at once decode may have answered, and nothing is read of prefill any more.
    const reading: PrefillReading =
      pair !== undefined && isUtf8(bytes)
        ? pair.adapter.readPrefill(pair.request, bytes)
        : { kind: "none", why: "the answer is not UTF-8" };
    if (reading.kind !== "none") record.usage = { ...reading.usage, generatedTokens: -1 };
    this.#parts.handoffs.made(record.leg.workerId, record.handoff, this.#parts.clock.now());
    this.#step({ kind: "prefill_read", reading });
  }

  /** Stops a leg from this side, and says that it failed. */
  #stop(slot: LegSlot, outcome: LegOutcome, why: string): void {
    this.#legs[slot]?.call?.abort();
    this.#failed(slot, outcome, why);
  }

  #abort(slot: LegSlot, handoff: boolean): void {
    const record = this.#legs[slot];
    const call = record?.call;
    if (record === undefined || call === undefined) return;
    const { clock } = this.#parts;
    const waitMs = record.startedAt + handoffReachMs - clock.now();
    if (!handoff || waitMs <= 0) call.abort();
    else {
      void clock.sleep(waitMs).then(() => {
        call.abort();
      });
    }
  }

  #legEnded(slot: LegSlot, outcome: LegOutcome, why: string): void {
    const { clock, metrics, log } = this.#parts;
    const now = clock.now();
    const { legs } = this.#placement;
    const leg = slot === "prefill" ? legs[0] : legs[legs.length - 1];
    if (leg === undefined) return;
    const record = this.#legs[slot] ?? new LegRecord(slot, leg, now);
    this.#pending.push({ record, outcome });
    metrics.legs.inc({ engine: leg.engine, leg: leg.role, outcome });
    if (outcome === "done") {
      metrics.legSeconds.observe(
        { engine: leg.engine, leg: leg.role },
        (now - record.startedAt) / 1_000,
      );
    } else if (outcome !== "cancelled" && outcome !== "not_started") {
      log.warn(
        {
          event: "leg_failed",
          decision: this.#placement.decisionId,
          leg: leg.role,
          worker: leg.workerId,
          outcome,
          status: record.status,
          reason: why.slice(0, 300),
        },
        "a leg failed",
      );
    }
    this.#settleHandoff(slot, outcome);
    this.#legs[slot] = undefined;
  }

  /** A hand-off waits until its decode leg has answered or was stopped, unless it was never made or nobody can pull it. */
  #settleHandoff(slot: LegSlot, outcome: LegOutcome): void {
    const record = this.#legs[slot];
    const prefill = this.#placement.legs[0];
    if (record === undefined || prefill === undefined) return;
    const { handoffs } = this.#parts;
    if (slot === "prefill") {
      if (outcome === "done") this.#handoff = record.handoff;
      else handoffs.remove(prefill.workerId, record.handoff);
    } else if (this.#handoff !== 0 && outcome !== "lost") {
      handoffs.remove(prefill.workerId, this.#handoff);
      this.#handoff = 0;
    }
  }

  #flush(isLast: boolean): void {
    const { clock } = this.#parts;
    const ttftMs = this.#firstByteAt === 0 ? 0 : this.#firstByteAt - this.#arrivedAt;
    const now = clock.now();
    this.#pending.forEach(({ record, outcome }, index) => {
      const last = isLast && index === this.#pending.length - 1;
      this.#parts.notify(
        record.notice(this.#placement, { ended: true, outcome, ttftMs, last, now }),
      );
    });
    this.#pending.length = 0;
  }

  #pass(): void {
    const { clock, metrics, handoffs } = this.#parts;
    const record = this.#legs.answer;
    const head = this.#head;
    if (record === undefined || head === undefined) return;
    const now = clock.now();
    record.firstByteAt = now;
    if (this.#firstByteAt > 0) return;
    this.#firstByteAt = now;
    if (this.#guard === undefined) this.#forget();
    metrics.ttftSeconds.observe({ mode: this.mode }, (now - this.#arrivedAt) / 1_000);
    const prefill = this.#placement.legs[0];
    if (this.#handoff !== 0 && prefill !== undefined) {
      handoffs.remove(prefill.workerId, this.#handoff);
      this.#handoff = 0;
    }
    const fields = returnedFields(head.headers);
    const length = head.headers["content-length"];
    if (!this.#body.stream && length !== undefined) fields.push(["content-length", length]);
    this.#sendHead(head.status, fields);
    const ttftMs = now - this.#arrivedAt;
    this.#parts.notify(
      record.notice(this.#placement, { ended: false, outcome: "done", ttftMs, last: false, now }),
    );
  }

  #sendHead(status: number, fields: readonly HeaderField[]): void {
    const guard = this.#guard === undefined ? `off; reason=${this.#unguardedReason ?? ""}` : "on";
    const own: HeaderField[] = this.#body.stream ? [["x-kvmesh-guard", guard]] : [];
    this.#answer.head(status, [...fields, ...own]);
  }

  /** The client gets an answer that the prefill leg made. */
  #answerWhole(bytes: Uint8Array): void {
    const { clock } = this.#parts;
    this.#firstByteAt = clock.now();
    if (!this.#body.stream) {
      this.#answer.head(200, [
        ["content-type", "application/json"],
        ["content-length", String(bytes.length)],
      ]);
      this.#answer.write(bytes);
    } else {
      const options = this.#body.object.value("stream_options");
      const withUsage =
        typeof options === "object" &&
        options !== null &&
        "include_usage" in options &&
        options.include_usage === true;
      this.#answer.head(200, [["content-type", "text/event-stream; charset=utf-8"]]);
      this.#answer.write(wholeAsStream(this.#body.kind, bytes, withUsage));
    }
    this.#answer.end();
  }

  /** Tells a client inside a stream that it breaks off; of a whole answer it sees the broken connection. */
  #break(error: MeshError): void {
    if (!this.#body.stream) {
      this.#answer.destroy();
      return;
    }
    if (!this.#isAtEventEnd) this.#answer.write(eventEnd);
    this.#answer.write(Buffer.from(`data: ${openAiError(error).body}\n\n`));
    this.#answer.end();
  }

  #placeAgain(excluded: readonly string[]): void {
    const { placer, metrics, config, clock } = this.#parts;
    this.#wait("placing", config.deadlines.placeMs + 100);
    void placer
      .place({
        requestId: this.#request.header("x-request-id") ?? this.#placement.decisionId,
        path: this.#request.path,
        body: this.#raw,
        excluded,
        timeoutMs: config.deadlines.placeMs,
      })
      .then((given) => {
        if (given.kind === "refused") {
          if (this.#run.isOver) return;
          metrics.placementsAgain.inc({ outcome: given.outcome });
          this.#step({ kind: "not_placed", code: given.code, why: given.message });
          return;
        }
        const reading = readPlacement(
          given.token,
          this.#parts.placementKeys,
          clock.wallUnixUs() / 1_000,
        );
        if (reading.kind === "refused") {
          metrics.placementsAgain.inc({ outcome: "refused" });
          this.#step({ kind: "not_placed", code: "worker_lost", why: reading.message });
          return;
        }
        if (this.#run.isOver) {
          abandon(this.#parts, reading.placement);
          return;
        }
        metrics.placementsAgain.inc({ outcome: "placed" });
        this.#goOnWith(reading.placement);
      });
  }

  #goOnWith(placement: Placement): void {
    const before = this.#placement;
    try {
      this.#planned = this.#plan(placement);
      // The guard is asked for once, however often the request is placed.
      this.#placement =
        before.guard === undefined ? placement : { ...placement, guard: before.guard };
      if (this.#cut?.kind === "continue") this.#planned = this.#planContinuation(this.#cut);
    } catch (error) {
      abandon(this.#parts, placement);
      const { code, message } = toMeshError(error);
      this.#step({ kind: "not_placed", code, why: message });
      return;
    }
    this.#step({ kind: "placed", plan: this.#planned.plan });
  }

  /** The whole rest of a guarded stream, on the engine that answers. */
  #planContinuation(cut: Extract<Cut, { kind: "continue" }>): PlannedRun {
    const guard = this.#guard;
    const { legs } = this.#placement;
    const leg = legs[legs.length - 1];
    if (guard === undefined || leg === undefined) {
      throw new MeshError("worker_lost", "the stream cannot be continued");
    }
    this.#path = continuationPath(this.#request.path);
    const body = continuationBody(guard.body, guard.request, cut);
    return { plan: { kind: "whole", body, workerId: leg.workerId } };
  }

  #wait(phase: Phase, ms: number): void {
    this.#phase = phase;
    this.#deadlineAt = this.#parts.clock.now() + ms;
  }
}

/** Answers with an error in the OpenAI shape. */
export function sendError(answer: ClientAnswer, error: MeshError): void {
  const { status, body } = openAiError(error);
  const bytes = Buffer.from(body);
  const fields: HeaderField[] = [
    ["content-type", "application/json"],
    ["content-length", String(bytes.length)],
  ];
  const retryAfterMs = error.retryAfterMs ?? (wire[error.code].retry === "after_delay" ? 1_000 : 0);
  if (retryAfterMs > 0) {
    fields.push(["retry-after", String(Math.ceil(retryAfterMs / 1_000))]);
    fields.push(["retry-after-ms", String(Math.ceil(retryAfterMs))]);
  }
  answer.head(status, fields);
  answer.write(bytes);
  answer.end();
}

/** What a request must have before a leg is started for it. Throws what the client hears. */
export function admit(
  parts: RelayParts,
  request: ClientRequest,
): { readonly placement: Placement; readonly body: RelayedBody } {
  const kind = kindOfPath(request.path);
  if (kind === undefined) {
    throw new MeshError(
      "not_found",
      `relays carry /v1/completions and /v1/chat/completions, not ${request.path.split("?", 1)[0] ?? ""}`,
    );
  }
  if (request.method !== "POST") {
    throw new MeshError("invalid_request", `${request.method} has no meaning here; use POST`);
  }
  const reading = readPlacement(
    request.header(placementHeader),
    parts.placementKeys,
    parts.clock.wallUnixUs() / 1_000,
  );
  if (reading.kind === "refused") {
    parts.metrics.refusals.inc({ reason: `placement_${reading.reason}` });
    throw new MeshError(
      "unauthenticated",
      `the placement is not valid (${reading.reason}): ${reading.message}`,
    );
  }
  const { placement } = reading;
  if (!isPlacedBody(placement, hash(request.body))) {
    parts.metrics.refusals.inc({ reason: "placement_digest_mismatch" });
    throw new MeshError(
      "unauthenticated",
      "the placement is not valid (digest_mismatch): it was made for another body",
    );
  }
  if (!isUtf8(request.body)) throw new MeshError("invalid_request", "the body is not UTF-8");
  const body = readBody(parts.json, request.body, { kind, salted: placement.salted });
  return { placement, body };
}
