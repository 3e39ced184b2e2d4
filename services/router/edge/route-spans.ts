import { createHash } from "node:crypto";
import type { Clock } from "../../shared/core/clock.ts";
import type { MeshError, MeshErrorCode } from "../../shared/core/errors.ts";
import { attributes, candidatesMax, spanNames } from "../../shared/core/trace-catalogue.ts";
import type { MeshSpan, TraceContext, Tracing } from "../../shared/edge/tracing.ts";
import type { Decision } from "../core/decisions/decision.ts";
import type { ExchangeRequest } from "../core/exchange/exchange.ts";
import type { OpenAiRequest } from "../core/openai/openai-request.ts";
import type { TokenisedPrompt } from "../core/prompt/read-prompt.ts";
import type { CostTermName, ScoredCandidate } from "../core/placement/candidate.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { RequestContext } from "./request-context.ts";

/** Value of `error.type` for each refusal. */
const errorTypeOf: Readonly<Record<MeshErrorCode, string>> = {
  invalid_request: "bad_request",
  context_length_exceeded: "bad_request",
  model_not_found: "model_not_found",
  no_ready_worker: "no_endpoint",
  overloaded: "shed_overload",
  tenant_limited: "shed_overload",
  request_too_large: "request_too_large",
  resume_lost: "bad_request",
  deadline_exceeded: "deadline_exceeded",
  cancelled: "client_cancel",
  worker_lost: "engine_crash",
  stale_epoch: "index_stale",
  unauthenticated: "auth",
  permission_denied: "auth",
  already_exists: "bad_request",
  not_found: "bad_request",
  invariant_violated: "internal",
};

/** Spans that routers write for a request placed at once: route, body, tokenize, lookup, score, serve. */
const spansExpected = 6;

/**
 * The spans of one decision; all calls do nothing when the request is not traced. Every start and end is read from one
 * clock: the SDK's own readings have a grain of 1 ms beside given times, longer than most of these spans.
 */
export class RouteSpans {
  readonly #tracing: Tracing;
  readonly #span: MeshSpan | undefined;
  readonly #clock: Clock;

  constructor(tracing: Tracing, span: MeshSpan | undefined, clock: Clock) {
    this.#tracing = tracing;
    this.#span = span;
    this.#clock = clock;
  }

  /** Context of the route span. */
  get context(): TraceContext | undefined {
    return this.#span?.context;
  }

  /** The wait for the body, over by now. */
  body(context: RequestContext, request: ExchangeRequest): void {
    if (this.#span === undefined) return;
    const now = this.#clock.wallUnixUs();
    const span = this.#tracing.start(spanNames.routeBody, {
      parent: this.#span.context,
      startUnixUs: context.startedUnixUs,
      attributes: {
        [attributes.bodyMode]: context.bodyMode,
        [attributes.bodyBytes]: request.bodyBytes,
        [attributes.bodyChunks]: context.bodyChunks,
        [attributes.bodyWaitMs]: (now - context.startedUnixUs) / 1_000,
        [attributes.bodyPartial]: request.truncated,
      },
    });
    span?.end(now);
  }

  /** Starts a child of the decision. */
  start(part: "tokenize" | "lookup"): MeshSpan | undefined {
    if (this.#span === undefined) return undefined;
    const name = part === "tokenize" ? spanNames.routeTokenize : spanNames.routeLookup;
    return this.#tracing.start(name, {
      parent: this.#span.context,
      startUnixUs: this.#clock.wallUnixUs(),
    });
  }

  /** Ends the tokenize span. */
  tokenized(span: MeshSpan | undefined, prompt: TokenisedPrompt, request: OpenAiRequest): void {
    if (span === undefined) return;
    const asked = request.prompt;
    span.set({
      [attributes.tokenizeTokens]: prompt.tokens,
      [attributes.tokenizeBackend]: prompt.loadOnly === undefined ? "fused" : "none",
      [attributes.tokenizeMessages]:
        asked.kind === "chat" || asked.kind === "scanned_chat"
          ? asked.chat.messages.length
          : undefined,
      [attributes.tokenizeBytes]:
        asked.kind === "text"
          ? asked.text.length
          : asked.kind === "scanned_text"
            ? asked.text.text.end - asked.text.text.start
            : undefined,
    });
    span.end(this.#clock.wallUnixUs());
  }

  /** Ends the lookup span, writes the score span and ends the route span: the endpoint is about to be returned. */
  placed(lookup: MeshSpan | undefined, decision: Decision, core: RouterCore): void {
    const root = this.#span;
    if (root === undefined) return;
    const { candidates, outcome } = decision;
    lookup?.set({
      [attributes.indexBlocksTotal]: decision.promptBlocks,
      [attributes.indexBlocksMatchedMax]: Math.max(0, ...candidates.map((c) => c.matchedBlocks)),
      [attributes.indexWorkersMatched]: candidates.filter((c) => c.matchedBlocks > 0).length,
      [attributes.indexSeq]:
        decision.workerId === undefined
          ? undefined
          : core.members.get(decision.workerId)?.appliedSeq,
      [attributes.indexAgeMs]: decision.indexAgeMs,
      [attributes.indexGap]: candidates[0]?.suspect ?? false,
    });
    lookup?.end(this.#clock.wallUnixUs());
    this.#score(root, decision);
    if (outcome.kind !== "placed") return;
    const { chosen } = decision;
    root.set({
      ...pairAttributes(decision),
      ...this.#identity(decision),
      [attributes.routeOutcome]: "picked",
      [attributes.workerId]: decision.workerId,
      [attributes.routeEndpoint]: decision.endpoints[0],
      [attributes.routeFallbackEndpoints]: decision.endpoints.slice(1),
      [attributes.routeMode]: decision.pair?.form === "pair" ? "pd" : "agg",
      [attributes.predictedTtftMs]: chosen?.predictedTtftMs,
      [attributes.predictedCachedTokens]: chosen?.matchedTokens,
      [attributes.traceSpansExpected]:
        (decision.admission?.waitedMs ?? 0) > 0 ? spansExpected + 1 : spansExpected,
    });
    root.end(this.#clock.wallUnixUs());
  }

  /** Writes the admission span of a request that waited or was refused there, over by now. */
  admitted(decision: Decision): void {
    const { admission } = decision;
    const root = this.#span;
    if (root === undefined || admission === undefined) return;
    const { className, tenant, waitedMs, position, blockedBy, shedReason } = admission;
    root.set({
      [attributes.sloClass]: className,
      [attributes.tenantClass]: tenant === "" ? undefined : hashedTenant(tenant),
    });
    if (waitedMs === 0 && shedReason === "") return;
    const now = this.#clock.wallUnixUs();
    const span = this.#tracing.start(spanNames.routeAdmission, {
      parent: root.context,
      startUnixUs: now - waitedMs * 1_000,
      attributes: {
        [attributes.admissionClass]: className,
        [attributes.admissionWaitMs]: waitedMs,
        [attributes.admissionPosition]: position,
        [attributes.admissionBlockedBy]: blockedBy === "" ? undefined : blockedBy,
        [attributes.admissionShedReason]: shedReason === "" ? undefined : shedReason,
        [attributes.admissionRetryAfterMs]: shedReason === "" ? undefined : admission.retryAfterMs,
      },
    });
    span?.end(now);
  }

  /** Ends the route span of a request whose client left while it waited. */
  cancelled(requestId: string): void {
    this.#span?.set({
      [attributes.requestId]: requestId,
      [attributes.decisionId]: "",
      [attributes.routeOutcome]: "cancelled",
    });
    this.#span?.fail("client_cancel");
    this.#span?.end(this.#clock.wallUnixUs());
  }

  /** Ends the route span of a request that the router answered itself. */
  refused(error: MeshError, requestId: string, decisionId = ""): void {
    const outcome =
      error.code === "no_ready_worker"
        ? "no_endpoint"
        : error.code === "overloaded" || error.code === "tenant_limited"
          ? "shed"
          : "refused";
    this.#span?.set({
      [attributes.requestId]: requestId,
      [attributes.decisionId]: decisionId,
      [attributes.routeOutcome]: outcome,
    });
    this.#span?.fail(errorTypeOf[error.code]);
    this.#span?.end(this.#clock.wallUnixUs());
  }

  /** Ends the route span of a request that needs no engine. */
  answered(_what: "models", requestId: string): void {
    this.#span?.set({
      [attributes.requestId]: requestId,
      [attributes.decisionId]: "",
      [attributes.routeOutcome]: "answered",
    });
    this.#span?.end(this.#clock.wallUnixUs());
  }

  /** Ends the route span after a bug. */
  failed(code: MeshErrorCode): void {
    this.#span?.fail(errorTypeOf[code]);
    this.#span?.end(this.#clock.wallUnixUs());
  }

  #identity(decision: Decision): Record<string, string | number | undefined> {
    return {
      [attributes.decisionId]: decision.id,
      [attributes.requestId]: decision.requestId,
      [attributes.poolId]: decision.pool,
      [attributes.genAiRequestModel]: decision.model === "" ? undefined : decision.model,
      [attributes.genAiUsageInputTokens]: decision.promptTokens,
      [attributes.routePolicy]: decision.policy,
      [attributes.routeDecideUs]: decision.decideUs,
      [attributes.routeLoadOnlyReason]:
        decision.loadOnlyReason === "" ? undefined : decision.loadOnlyReason,
    };
  }

  #score(root: MeshSpan, decision: Decision): void {
    const span = this.#tracing.start(spanNames.routeScore, {
      parent: root.context,
      startUnixUs: this.#clock.wallUnixUs(),
    });
    if (span === undefined) return;
    const top = decision.candidates.slice(0, candidatesMax);
    const term = (name: CostTermName): number[] => top.map((c) => termMs(c, name));
    const counts = new Map<string, number>();
    for (const { reason } of decision.filtered) counts.set(reason, (counts.get(reason) ?? 0) + 1);
    span.set({
      [attributes.routeCandidates]: decision.candidates.length,
      [attributes.routeFiltered]: [...counts].map(([reason, n]) => `${reason}=${n}`),
      [attributes.candidateId]: top.map((c) => c.workerId),
      [attributes.candidateEndpoint]: top.map((c) => c.endpoint),
      [attributes.candidateTotalMs]: top.map((c) => c.costMs),
      [attributes.candidateQueueMs]: term("queue"),
      [attributes.candidatePrefillMs]: term("prefill"),
      [attributes.candidateDecodeMs]: term("decode"),
      [attributes.candidateSlowdownMs]: term("slowdown"),
      [attributes.candidateEvictionMs]: term("eviction"),
      [attributes.candidateOtherMs]: top.map(otherTerms),
      [attributes.candidatePredictedTtftMs]: top.map((c) => c.predictedTtftMs),
      [attributes.candidateMatchedTokens]: top.map((c) => c.matchedTokens),
      [attributes.candidateOpenRequests]: top.map((c) => c.load.openRequests),
      [attributes.candidateSuspect]: top.filter((c) => c.suspect).map((c) => c.workerId),
      [attributes.routeMarginMs]: decision.marginMs,
      [attributes.routeTieBreak]: decision.tieBreak === "" ? undefined : decision.tieBreak,
      [attributes.routeBestAlternative]: decision.candidates[1]?.workerId,
    });
    span.end(this.#clock.wallUnixUs());
  }
}

/** What a decision says of running on two workers. */
function pairAttributes({ pair }: Decision): Record<string, string | number | undefined> {
  if (pair === undefined) return {};
  const chosen = pair.form === "pair" ? pair.candidates[0] : undefined;
  return {
    [attributes.routeFormReason]: pair.why,
    [attributes.routeFormMarginMs]: pair.candidates.length > 0 ? pair.marginMs : undefined,
    [attributes.routePrefillWorkerId]: chosen?.prefillWorkerId,
    [attributes.predictedTransferMs]:
      chosen === undefined ? undefined : chosen.term("transfer_wait") + chosen.term("transfer"),
    [attributes.predictedTransferBytes]: chosen?.transferBytes,
  };
}

/** Terms that have an array of their own. */
const ownTerms: readonly CostTermName[] = ["queue", "prefill", "decode", "slowdown", "eviction"];

/** Sum of the others. */
function otherTerms(candidate: ScoredCandidate): number {
  let sum = 0;
  for (const { name, ms } of candidate.terms) if (!ownTerms.includes(name)) sum += ms;
  return sum;
}

/** A tenant as traces name it. */
function hashedTenant(tenant: string): string {
  return createHash("sha256").update(tenant).digest("hex").slice(0, 16);
}

function termMs(candidate: ScoredCandidate, name: CostTermName): number {
  return candidate.terms.find((t) => t.name === name)?.ms ?? 0;
}
