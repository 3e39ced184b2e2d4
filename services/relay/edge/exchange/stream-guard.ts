import { MeshError } from "../../../shared/core/errors.ts";
import type {
  GuardSettings,
  Placement,
  PlacementForecast,
} from "../../../shared/core/placement-token/placement.ts";
import { readBody, type RelayedBody } from "../../core/body/relayed-body.ts";
import { HeldEvents } from "../../core/guard/held-events.ts";
import { continuationBody, continuationPath } from "../../core/guard/continuation.ts";
import { findUnguardedReason, type UnguardedReason } from "../../core/guard/guard-policy.ts";
import {
  guardedBody,
  readGuardRequest,
  type GuardRequest,
} from "../../core/guard/guard-request.ts";
import {
  GuardedStream,
  type Cut,
  type GuardVerdict,
  type ResumedFrom,
} from "../../core/guard/guarded-stream.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { PlannedRun } from "../../core/request/plan-run.ts";
import type { StreamMirror } from "../mirror-links.ts";
import type { RelayParts } from "../relay-parts.ts";
import type { OpenRequest } from "./open-request.ts";

/** A frozen first token is waited for at least so long, and so many times as long as was forecast. */
const firstTokenMsMin = 2_000;
const firstTokenMultiple = 8;

/** Most bytes of a stream that wait for its buddy. */
const heldBytesMax = 64 << 10;
const noBytes = new Uint8Array(0);

/** How a stream is guarded that came to be resumed with a placement that asks for no guard. */
const resumedGuard: GuardSettings = {
  freezeItlMultiple: 20,
  freezeMsMin: 1_000,
  migrationsMax: 3,
};

/** What it came to that a stream was to be guarded. */
export type GuardOpening =
  | { readonly kind: "on"; readonly guard: StreamGuard }
  | { readonly kind: "off"; readonly reason: UnguardedReason };

/** Guards the stream that a request asks for, where its placement wants that and it can be done. */
export function openGuard(
  parts: RelayParts,
  request: {
    readonly placement: Placement;
    readonly body: RelayedBody;
    /** Context in which a relay that goes on with the stream is told of this request. */
    readonly traceparent: string;
  },
  resumed: ResumedFrom | undefined,
): GuardOpening {
  const { adapters, metrics } = parts;
  const { placement, body } = request;
  const [leg] = placement.legs;
  const settings = placement.guard ?? (resumed === undefined ? undefined : resumedGuard);
  const tellsIds = leg !== undefined && adapters[leg.engine].tellsTokenIds;
  const reason = findUnguardedReason(body, settings, tellsIds);
  if (reason !== undefined || settings === undefined) {
    const why = reason ?? "not_asked";
    if (why !== "not_asked") metrics.guards.inc({ state: "off", reason: why });
    return { kind: "off", reason: why };
  }
  metrics.guards.inc({ state: "on", reason: "" });
  return { kind: "on", guard: new StreamGuard(parts, { ...request, settings, resumed }) };
}

/** A stream that is guarded: its tokens, the body that engines get for it, and how it goes on when one is lost. */
export class StreamGuard {
  readonly #parts: RelayParts;
  readonly #settings: GuardSettings;
  readonly #request: GuardRequest;
  readonly #mirror: StreamMirror | undefined;
  readonly stream: GuardedStream;
  /** What engines are asked. */
  readonly body: RelayedBody;
  /** How it goes on where it is placed next. */
  #cut: Cut | undefined;
  /** Since when it stands still, ms, and why; 0 while it does not. */
  #lostAt = 0;
  #lostBy: LegOutcome = "lost";
  readonly #held = new HeldEvents(heldBytesMax);
  /** Until when the buddy's first word is waited for, ms; 0 while nothing waits. */
  #heldUntil = 0;

  constructor(
    parts: RelayParts,
    options: {
      readonly placement: Placement;
      readonly body: RelayedBody;
      readonly traceparent: string;
      readonly settings: GuardSettings;
      readonly resumed: ResumedFrom | undefined;
    },
  ) {
    const { placement, body, settings, resumed } = options;
    this.#parts = parts;
    this.#settings = settings;
    this.#request = readGuardRequest(body);
    const mirror = parts.mirrors.open(placement.bodySha256);
    this.#mirror = mirror;
    this.stream = new GuardedStream({
      request: this.#request,
      cachedTokens: -1,
      ...(mirror === undefined ? {} : { nameOf: (point) => mirror.nameOf(point) }),
      ...(resumed === undefined ? {} : { resumed }),
    });
    mirror?.follow(this.stream, options.traceparent);
    const facts = { kind: body.kind, salted: placement.salted };
    this.body = readBody(parts.json, guardedBody(body), facts);
  }

  /** Whether the engine is asked without the request's stop texts, which are looked for here. */
  get looksForStops(): boolean {
    return this.#request.stops.length > 0;
  }

  /** Whether all that is missing of a stream that is resumed is its end. */
  get isFinished(): boolean {
    return this.#cut?.kind === "finished";
  }

  /**
   * Takes what is to go to the client; nothing while it must wait. The first tokens go out when the buddy has confirmed the
   * stream, so that there is no moment at which a client has tokens that it could not go on from; a few ms on one machine.
   * A buddy that says nothing for `deadlines.mirrorMs` costs the stream its names, not its life: what waited goes out
   * without them, is counted, and later events are named once the buddy has it after all. `isEnd`: nothing follows, so that
   * nothing need be gone on with.
   */
  takeEvents(isEnd: boolean): Uint8Array {
    // The guard's memory is used again at once.
    const events = Buffer.from(this.stream.takeOutput());
    const mirror = this.#mirror;
    if (mirror === undefined) return events;
    if (!mirror.isOpening || isEnd || this.stream.sentCount === 0) {
      if (this.#held.isEmpty) return events;
      this.#held.add(events);
      return this.#letGo();
    }
    if (events.length === 0) return events;
    if (this.#held.add(events)) {
      const { clock, config } = this.#parts;
      if (this.#heldUntil === 0) this.#heldUntil = clock.now() + config.deadlines.mirrorMs;
      return noBytes;
    }
    mirror.late();
    return this.#held.isEmpty ? noBytes : this.#letGo();
  }

  /** Has `onConfirmed` called when events wait no longer, because of the buddy or of the time. */
  set onConfirmed(told: () => void) {
    if (this.#mirror !== undefined) this.#mirror.onSettled = told;
  }

  /** Waits for the buddy no longer than it should; called a few times a second. */
  tick(now: number): void {
    if (this.#heldUntil > 0 && now >= this.#heldUntil && this.#mirror?.isOpening === true) {
      this.#mirror.late();
    }
  }

  /** What waited for the buddy, with names where it keeps the stream. */
  #letGo(): Uint8Array {
    this.#heldUntil = 0;
    const isKept = this.#mirror?.isKept === true;
    if (!isKept) this.#parts.metrics.unnamed.inc();
    return this.#held.take(isKept);
  }

  /** Reads a piece of the engine's answer. */
  receive(piece: Uint8Array): GuardVerdict {
    const verdict = this.stream.receive(piece);
    // What came with the reason is not looked through for stop texts, and comes again from the engine that is asked anew.
    if (verdict === "unguarded" && this.looksForStops) this.stream.takeOutput();
    return verdict;
  }

  /** Tokens went out, behind the first `before`. Says what was behind it if they are the first of another engine. */
  grew(before: number): { readonly cause: LegOutcome; readonly gapMs: number } | undefined {
    const { metrics, clock } = this.#parts;
    const added = this.stream.sentCount - before;
    if (added === 0) return undefined;
    this.#mirror?.grew();
    metrics.guardedTokens.inc(added);
    if (this.#lostAt === 0) return undefined;
    const gapMs = clock.now() - this.#lostAt;
    const cause = this.#lostBy;
    metrics.migrations.inc({ cause, outcome: "continued" });
    metrics.migrationSeconds.observe(gapMs / 1_000);
    this.#lostAt = 0;
    this.#cut = undefined;
    return { cause, gapMs };
  }

  /** Prepares a stream that another relay began to go on here. */
  takeOver(): void {
    this.#cut = this.stream.cut();
  }

  /** Its engine is lost. Says whether the stream is complete, can go on elsewhere, or has been moved too often. */
  lost(outcome: LegOutcome): "finished" | "can_continue" | "given_up" {
    const cut = this.stream.cut();
    if (cut.kind === "finished") return "finished";
    this.#cut = cut;
    this.#lostAt = this.#parts.clock.now();
    this.#lostBy = outcome;
    if (this.stream.losses <= this.#settings.migrationsMax) return "can_continue";
    this.#parts.metrics.migrations.inc({ cause: outcome, outcome: "failed" });
    return "given_up";
  }

  /** The stream goes on without a guard, and nobody may resume it from what the client has. */
  givenUp(): void {
    this.#mirror?.givenUp();
  }

  /** The request is over. `complete`: nothing need be kept of the stream. */
  ended(complete: boolean): void {
    this.#mirror?.ended(complete);
  }

  /** Longest wait for the first token, ms. */
  firstTokenMs(forecast: PlacementForecast): number {
    return Math.min(
      this.#parts.config.deadlines.firstByteMs,
      Math.max(
        firstTokenMsMin,
        this.#settings.freezeMsMin,
        firstTokenMultiple * (forecast.ttftMs + forecast.prefillMs),
      ),
    );
  }

  /** Longest wait for the next token of a stream whose answer began at `firstByteAt`, ms. */
  freezeMs(forecast: PlacementForecast, firstByteAt: number): number {
    const sent = this.stream.sentCount;
    if (sent === 0) return this.firstTokenMs(forecast);
    const { freezeMsMin, freezeItlMultiple } = this.#settings;
    // An engine that is slower than forecast all the time is not frozen.
    const meanMs = (this.#parts.clock.now() - firstByteAt) / sent;
    return Math.max(freezeMsMin, freezeItlMultiple * Math.max(forecast.itlMs, meanMs));
  }

  /**
   * The whole rest of the stream on the engine that answers; nothing when the request begins as any other. Throws
   * `worker_lost` when no engine is named.
   */
  planRest(open: OpenRequest): PlannedRun | undefined {
    const cut = this.#cut;
    if (cut?.kind !== "continue") return undefined;
    const leg = open.legOf("answer");
    if (leg === undefined) throw new MeshError("worker_lost", "the stream cannot be continued");
    open.path = continuationPath(open.client.path);
    const body = continuationBody(this.body, this.#request, cut);
    return { plan: { kind: "whole", body, workerId: leg.workerId } };
  }
}
