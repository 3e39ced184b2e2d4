import type { Placement } from "../../../shared/core/placement-token/placement.ts";
import { attributes, spanNames } from "../../../shared/core/trace-catalogue.ts";
import {
  formatTraceparent,
  parseTraceparent,
  type MeshSpan,
  type SpanOptions,
  type TraceContext,
} from "../../../shared/edge/tracing.ts";
import type { HeaderField } from "../../core/request/forwarded-headers.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { RequestOutcome } from "../../core/request/leg-outcome.ts";
import { worthKeeping } from "../../core/trace/keep-rule.ts";
import type { TtftParts } from "../../core/trace/ttft-timeline.ts";
import type { ClientRequest } from "../client-exchange.ts";
import { LateTrace } from "../late-traces.ts";
import type { LegRecord } from "../leg-record.ts";
import type { RelayParts } from "../relay-parts.ts";
import {
  answerAttributes,
  identityAttributes,
  isClose,
  legAttributes,
  prefillAttributes,
  transferAttributes,
  type ResumedTrace,
} from "./span-attributes.ts";
import { known, StreamSpan } from "./stream-span.ts";

/** `error.type` of a leg that did not do its part; nothing for one that was given up without a failure of its own. */
const legErrors: Readonly<Record<LegOutcome, string | undefined>> = {
  done: undefined,
  lost: "engine_crash",
  engine_error: "upstream_status",
  timeout: "deadline_exceeded",
  frozen: "engine_frozen",
  cancelled: undefined,
  not_started: "bad_request",
  no_handoff: "kv_transfer_failed",
  stale: "index_stale",
  drained: undefined,
};

const requestErrors: Readonly<Record<RequestOutcome, string | undefined>> = {
  done: undefined,
  client_cancel: "client_cancel",
  engine_lost: "engine_crash",
  engine_error: "upstream_status",
  deadline_exceeded: "deadline_exceeded",
  engine_frozen: "engine_frozen",
  refused: "bad_request",
  resume_lost: "resume_lost",
};

/** How a request ended. */
export interface RequestEnd {
  readonly outcome: RequestOutcome;
  readonly mode: "whole" | "pair";
  readonly placements: number;
  /** State of the guard, and why there is none; absent for answers that are no streams. */
  readonly guard?: { readonly isOn: boolean; readonly reason: string | undefined };
  /** Tokens that the client got, where a guard counted them. */
  readonly tokens: number | undefined;
  readonly ttftMs: number;
}

/** A leg while it is open, and of the answering one until the request is over. */
interface LegSpan {
  readonly span: MeshSpan;
  readonly record: LegRecord;
  readonly placement: Placement;
}

/** What prefill made for decode, until decode has begun. */
interface Offer {
  readonly placement: Placement;
  /** Since when nothing but the transfer is waited for, µs of the wall clock; 0 while prefill runs. */
  madeUs: number;
  blocks: number | undefined;
}

/**
 * The spans of one request: `kvmesh.request`, one for each leg, the transfer between two, and the answer's way to the
 * client. A request that is not traced makes none, and calls do nothing; one whose caller was not sampled makes plain
 * records, which are written if its trace turns out to matter. All times are read from one clock.
 */
export class RequestSpans {
  readonly #parts: RelayParts;
  readonly #arrivedAt: number;
  readonly #decisionId: string;
  readonly #predictedTtftMs: number;
  /** The caller's context; what engines get when no spans are written here. */
  readonly #incoming: TraceContext | undefined;
  readonly #late: LateTrace | undefined;
  readonly #root: MeshSpan | undefined;
  #spanCount = 0;
  #prefill: LegSpan | undefined;
  #answer: LegSpan | undefined;
  /** Tries of each part so far, and the last one's context, to which a further one links. */
  #prefillTries = 0;
  #answerTries = 0;
  #lastAnswer: TraceContext | undefined;
  #offer: Offer | undefined;
  #stream: StreamSpan | undefined;

  constructor(
    parts: RelayParts,
    request: {
      readonly client: ClientRequest;
      readonly placement: Placement;
      readonly arrivedAt: number;
      readonly resumed?: ResumedTrace | undefined;
    },
  ) {
    const { client, placement, arrivedAt, resumed } = request;
    const { late } = parts;
    this.#parts = parts;
    this.#arrivedAt = arrivedAt;
    this.#decisionId = placement.decisionId;
    this.#predictedTtftMs = placement.forecast.ttftMs;
    const route = parseTraceparent(placement.traceparent);
    const parent =
      parseTraceparent(client.header("traceparent"), client.header("tracestate")) ?? route;
    this.#incoming = parent;
    if (parent?.sampled === false && late !== undefined) this.#late = new LateTrace(parent);
    const links: TraceContext[] = [];
    const origin = parseTraceparent(resumed?.traceparent);
    if (route !== undefined && route.spanId !== parent?.spanId) links.push(route);
    if (origin !== undefined) links.push(origin);
    this.#root = this.#start(spanNames.request, {
      kind: "server",
      parent,
      links,
      startUnixUs: this.#wallUs(arrivedAt),
      attributes: identityAttributes(client, placement, resumed),
    });
  }

  /** Context in which others are told of this request; empty when there is none. */
  get traceparent(): string {
    const context = this.#root?.context ?? this.#incoming;
    return context === undefined ? "" : formatTraceparent(context);
  }

  /** The answer's span, once its first byte went out. */
  get stream(): StreamSpan | undefined {
    return this.#stream;
  }

  /** Trace fields of a leg's request. */
  fieldsOf(record: LegRecord): readonly HeaderField[] {
    const leg = record === this.#prefill?.record ? this.#prefill : this.#answer;
    const context = leg?.span.context ?? this.#incoming;
    if (context === undefined) return [];
    const fields: HeaderField[] = [["traceparent", formatTraceparent(context)]];
    if (context.traceState !== undefined) fields.push(["tracestate", context.traceState]);
    return fields;
  }

  /** A leg is about to be sent. `offset`: tokens that the client has; `local`: why decode computes the prompt itself. */
  legStarted(
    record: LegRecord,
    placement: Placement,
    of: { readonly offset: number; readonly local: string | undefined },
  ): void {
    if (this.#root === undefined) return;
    const isPrefill = record.slot === "prefill";
    const tries = isPrefill ? ++this.#prefillTries : ++this.#answerTries;
    const isFurther = tries > 1 || of.offset > 0;
    const span = this.#start(isPrefill ? spanNames.prefill : spanNames.decode, {
      kind: "client",
      parent: this.#root.context,
      links: isPrefill || this.#lastAnswer === undefined ? [] : [this.#lastAnswer],
      startUnixUs: this.#wallUs(record.startedAt),
      attributes: {
        ...legAttributes(record, placement.forecast),
        [attributes.legAttempt]: tries,
        [attributes.legLocalPrefill]: of.local,
        [attributes.resumeTokenOffset]: isPrefill || !isFurther ? undefined : of.offset,
      },
    });
    if (span === undefined) return;
    if (isPrefill) {
      this.#prefill = { span, record, placement };
      this.#answer = undefined;
      this.#offer = { placement, madeUs: 0, blocks: undefined };
      return;
    }
    this.#answer = { span, record, placement };
    this.#lastAnswer = span.context;
    if (of.local !== undefined) this.#offer = undefined;
    else if (this.#offer !== undefined && this.#offer.madeUs > 0) {
      this.#offer.madeUs = this.#wallUs(record.startedAt);
    }
  }

  /** Prefill offers so many blocks; `undefined` where the engine does not say. */
  offered(blocks: number | undefined): void {
    if (this.#offer !== undefined) this.#offer.blocks = blocks;
  }

  /** The first byte of the answer goes out. */
  firstByte(parts: TtftParts, ttftMs: number): void {
    if (this.#root === undefined) return;
    const firstByteUs = this.#wallUs(this.#arrivedAt + ttftMs);
    // Prefill alone may have made the answer.
    if (this.#answer === undefined) this.#offer = undefined;
    const steppedUs = firstByteUs - parts.decodeMs * 1_000;
    this.#writeTransfer(steppedUs, "complete", parts.transferMs);
    this.#root.set({
      [attributes.ttftRelayMs]: parts.relayMs,
      [attributes.ttftPrefillMs]: parts.prefillMs,
      [attributes.ttftTransferMs]: parts.transferMs,
      [attributes.ttftDecodeMs]: parts.decodeMs,
      [attributes.ttftRetryMs]: parts.retryMs,
    });
    const predicted = this.#predictedTtftMs;
    const span = this.#start(spanNames.stream, {
      parent: this.#root.context,
      startUnixUs: firstByteUs,
      attributes: {
        [attributes.predictedTtftMs]: predicted,
        [attributes.differenceTtftMs]: ttftMs - predicted,
        [attributes.differenceCause]: isClose(ttftMs, predicted) ? "none" : "unknown",
      },
    });
    if (span !== undefined) this.#stream = new StreamSpan(span, this.#parts.clock, ttftMs);
  }

  /** A leg is over. Those that were never sent have no span. `why`: empty when nothing was wrong with it or another. */
  legEnded(
    record: LegRecord,
    end: { readonly outcome: LegOutcome; readonly why: string; readonly now: number },
  ): void {
    const { outcome, why, now } = end;
    const isPrefill = record === this.#prefill?.record;
    const leg = isPrefill ? this.#prefill : this.#answer;
    if (leg?.record !== record) return;
    const { span, placement } = leg;
    const nowUs = this.#wallUs(now);
    if (isPrefill) {
      if (outcome === "done" && this.#offer !== undefined) this.#offer.madeUs = nowUs;
      else this.#offer = undefined;
      span.set(prefillAttributes(record, placement.forecast, now));
      this.#prefill = undefined;
    } else {
      if (outcome !== "done") this.#writeTransfer(nowUs, outcome, undefined);
      span.set(answerAttributes(record, placement.forecast, this.#stream?.meanGapMs));
    }
    span.set({ [attributes.legOutcome]: outcome });
    const error = outcome === "cancelled" && why === "" ? "client_cancel" : legErrors[outcome];
    if (error !== undefined) span.fail(error);
    span.end(nowUs);
  }

  /** The request is over. */
  ended(end: RequestEnd): void {
    const root = this.#root;
    if (root === undefined) return;
    const { outcome, guard } = end;
    const errorType = requestErrors[outcome];
    const usage = this.#answer?.record.usage;
    this.#stream?.ended({
      usage,
      tokens: end.tokens ?? (usage === undefined ? undefined : known(usage.generatedTokens)),
      hasLeft: outcome === "client_cancel",
      errorType,
    });
    const migrations = this.#stream?.migrations ?? 0;
    root.set({
      [attributes.requestOutcome]: outcome,
      [attributes.requestMode]: end.mode,
      [attributes.requestPlacements]: end.placements,
      [attributes.guardState]: guard === undefined ? undefined : guard.isOn ? "on" : "off",
      [attributes.guardReason]: guard?.isOn === false ? guard.reason : undefined,
      [attributes.streamMigrations]: migrations,
      [attributes.traceSpansExpected]: this.#spanCount,
    });
    if (errorType !== undefined) root.fail(errorType);
    root.end(this.#parts.clock.wallUnixUs());
    if (this.#late === undefined) return;
    const { ttftMs } = end;
    const predictedTtftMs = this.#predictedTtftMs;
    const reason = worthKeeping({ outcome, migrations, ttftMs, predictedTtftMs });
    this.#parts.late?.ended(this.#decisionId, this.#late, reason);
  }

  #start(name: string, options: SpanOptions): MeshSpan | undefined {
    const span = this.#late?.start(name, options) ?? this.#parts.tracing.start(name, options);
    if (span !== undefined) this.#spanCount++;
    return span;
  }

  /** A time of the monotonic clock as wall time, µs. */
  #wallUs(ms: number): number {
    const { clock } = this.#parts;
    return Math.round(clock.wallUnixUs() - (clock.now() - ms) * 1_000);
  }

  /** Writes the transfer that decode waited for, if it did; `observedMs` when it arrived. */
  #writeTransfer(endUs: number, outcome: string, observedMs: number | undefined): void {
    const offer = this.#offer;
    this.#offer = undefined;
    if (offer === undefined || this.#root === undefined) return;
    const startUs = offer.madeUs === 0 ? endUs : Math.min(offer.madeUs, endUs);
    const span = this.#start(spanNames.kvTransfer, {
      kind: "client",
      parent: this.#root.context,
      startUnixUs: startUs,
      attributes: {
        ...transferAttributes(offer.placement, this.#parts.adapters, observedMs),
        [attributes.kvBlocks]: offer.blocks,
        [attributes.kvOutcome]: outcome,
      },
    });
    if (observedMs === undefined) {
      span?.fail(outcome === "cancelled" ? "client_cancel" : "kv_transfer_failed");
    }
    span?.end(endUs);
  }
}
