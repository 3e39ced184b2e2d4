import { isUtf8 } from "node:buffer";
import { randomFillSync, randomUUID } from "node:crypto";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { invariant } from "../../shared/core/invariant.ts";
import { placementHeader } from "../../shared/core/placement-token/placement-token.ts";
import { openAiError, toMeshError, wire } from "../../shared/edge/wire.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type { MeshSpan, Tracing } from "../../shared/edge/tracing.ts";
import { formatTraceparent } from "../../shared/edge/tracing.ts";
import type { Decision } from "../core/decisions/decision.ts";
import { poolCluster, relaysCluster } from "../core/discovery/discovery-view.ts";
import type { Answer, ExchangeRequest, ImmediateAnswer } from "../core/exchange/exchange.ts";
import { readHints, type RequestHints } from "../core/admission/request-hints.ts";
import type { RequestHeaderName } from "../core/exchange/request-headers.ts";
import { answerFormOf } from "../core/openai/answer-form.ts";
import { BodyReader } from "../core/openai/body-reader.ts";
import type { OpenAiRequest } from "../core/openai/openai-request.ts";
import { readTruncatedRequest } from "../core/openai/truncated-request.ts";
import { findWrongForm, modelsQuestion } from "../core/openai/request-form.ts";
import type { TokenisedPrompt } from "../core/prompt/read-prompt.ts";
import type { GuardAsk } from "../core/relays/decision-guard.ts";
import type { PlaceInput } from "../core/placement/place-input.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { routerMetrics } from "../metrics.ts";
import type { ModelRuntimes } from "./model-runtimes.ts";
import { encodeMsMax, PromptReading, type AwaitedPrompt } from "./prompt-reading.ts";
import type { RequestContext } from "./request-context.ts";
import type { RequestDecider, WaitingDecision } from "./request-decider.ts";
import type { GuardAsks } from "./guard-asks.ts";
import { BodyDigest, type PlacementSigner } from "./relay-placement.ts";
import { RouteSpans } from "./route-spans.ts";

/** Header names between the router, Envoy and engines (see the README of the router). */
export const headerNames = {
  pool: "x-kvmesh-pool",
  destination: "x-gateway-destination-endpoint",
  placement: placementHeader,
} as const;

/** What the decider needs. */
export interface DeciderDependencies {
  readonly core: RouterCore;
  readonly runtimes: ModelRuntimes;
  readonly clock: Clock;
  readonly tracing: Tracing;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly defaultPool: string;
  readonly blockSizeTokens: number;
  readonly duplexFallbacks: boolean;
  /** Signs placements of requests that pass a relay; without one none does. */
  readonly signer?: PlacementSigner;
  /** Which streams are to survive their engine; without one none are. */
  readonly guards?: GuardAsks;
  /** Longest wait in admission of any class, ms. */
  readonly admissionWaitMsMax: number;
  /** Called with every decision, for watchers. */
  readonly onDecision: (decision: Decision) => void;
  /** Called when a request has begun to wait. */
  readonly onWaiting: () => void;
}

/** How a call over gRPC takes its turn. */
export interface CallTurn {
  /** Who asks and what for. */
  readonly hints: RequestHints;
  /** Aborts when the caller leaves or its deadline passes. */
  readonly signal: AbortSignal;
}

/** Seconds a refused client should wait when nothing better is known. */
const retryAfterDefaultMs = 1_000;

/** Memory of a waiting request beside its hashes and its body: its stream, its spans, the notes of the queue. */
const waitingBytes = 4_096;
/** How much longer than a request may wait its proxy is asked to, for the way of the answer, ms. */
const answerMarginMs = 250;

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const [first] = parts;
  return parts.length === 1 && first !== undefined ? first : Buffer.concat(parts);
}

/** Turns a whole request into an answer: reads, places, reserves, and writes the spans of the decision. */
export class Decider implements RequestDecider {
  readonly #d: DeciderDependencies;
  readonly #bodies = new BodyReader({ key: randomFillSync(new Int32Array(8)), isUtf8 });

  readonly #reading: PromptReading;

  constructor(dependencies: DeciderDependencies) {
    this.#d = dependencies;
    this.#reading = new PromptReading(dependencies);
  }

  /** Decides at once. Never throws for bad input: that becomes an answer in the OpenAI error shape. */
  decide(
    request: ExchangeRequest,
    context: RequestContext,
    answer: (answer: Answer) => void,
  ): WaitingDecision | undefined {
    const { clock, metrics } = this.#d;
    const startedAt = clock.now();
    const span = this.#startSpan(context);
    const spans = new RouteSpans(this.#d.tracing, span, clock);
    spans.body(context, request);
    let waiting: WaitingDecision | undefined;
    let made: Answer | undefined;
    try {
      made = this.#wrongForm(request, context, spans);
      if (made !== undefined) {
        // Nothing else of it is looked at.
      } else if (context.method === "GET" || context.method === "HEAD") {
        made = this.#headersOnly(context, spans);
        // A body has no meaning there, if one came at all.
        const bare = { headers: request.headers, body: [], bodyBytes: 0, truncated: false };
        if (made === undefined) waiting = this.#route(bare, context, spans, answer);
      } else waiting = this.#route(request, context, spans, answer);
    } catch (error) {
      const mesh = toMeshError(error);
      if (mesh.code === "invariant_violated") {
        spans.failed(mesh.code);
        throw error;
      }
      made = this.#refuse(mesh, context, spans);
    }
    metrics.decisionSeconds.observe((clock.now() - startedAt) / 1_000);
    if (made !== undefined) answer(made);
    return waiting;
  }

  /** Places a request that did not come through Envoy. Rejects with what is wrong with it. */
  async placeBody(options: {
    path: string;
    json: Uint8Array;
    requestId: string;
    subset: ReadonlySet<string> | undefined;
    excluded?: ReadonlySet<string>;
    dryRun: boolean;
    turn: CallTurn;
  }): Promise<{ readonly decision: Decision; readonly placement: string }> {
    const { path, json } = options;
    const openAi = this.#bodies.read(path, json);
    const pool = this.#pool(openAi.model);
    const read = this.#readPrompt(openAi, json.length, pool, () => ({
      bytes: json.length,
      reread: () => this.#bodies.read(path, json),
    }));
    const prompt = "read" in read ? await read.read : read;
    const isPairable = isSplittable(openAi) && this.#d.signer !== undefined;
    const asked = { ...options, openAi, pool, prompt, isPairable, bytes: json.length };
    const decision = await this.#place(asked);
    const isCarried = openAi.kind === "chat" || openAi.kind === "completions";
    if (options.dryRun || !isCarried) return { decision, placement: "" };
    const { sha256 } = new BodyDigest(json);
    const { tenant } = options.turn.hints;
    const guarded = this.#d.guards?.isGuarded(openAi, pool) === true;
    const placement = this.#d.signer?.sign(decision, { sha256, tenant, guarded }) ?? "";
    return { decision, placement };
  }

  /** Places a tokenised prompt. Rejects with what is wrong with it. */
  async placeTokens(options: {
    model: string;
    ids: readonly number[];
    tokensMax: number | undefined;
    requestId: string;
    subset: ReadonlySet<string> | undefined;
    excluded?: ReadonlySet<string>;
    dryRun: boolean;
    turn: CallTurn;
  }): Promise<Decision> {
    const { model, ids, tokensMax } = options;
    const openAi: OpenAiRequest = {
      kind: "completions",
      model,
      tokensMax,
      prompt: { kind: "tokens", ids },
    };
    const pool = this.#pool(model);
    // Ids are not encoded, so that nothing is put off.
    const prompt = this.#readPrompt(openAi, 0, pool, () => ({ bytes: 0, reread: () => openAi }));
    if ("read" in prompt) throw new MeshError("invariant_violated", "token ids are awaited");
    return this.#place({ ...options, openAi, pool, prompt, bytes: 4 * ids.length });
  }

  #startSpan(context: RequestContext): MeshSpan | undefined {
    return this.#d.tracing.start("kvmesh.route", {
      kind: "server",
      parent: context.parent,
      startUnixUs: context.startedUnixUs,
      ...(context.link === undefined ? {} : { links: [context.link] }),
    });
  }

  /** Refuses what no body could make good; `undefined` when there is nothing to refuse. */
  #wrongForm(
    request: ExchangeRequest,
    context: RequestContext,
    spans: RouteSpans,
  ): ImmediateAnswer | undefined {
    const wrong = findWrongForm({
      method: context.method,
      path: context.path,
      contentType: request.headers.get("content-type"),
      contentEncoding: request.headers.get("content-encoding"),
    });
    if (wrong === undefined) return undefined;
    const { status, message, allow } = wrong;
    const answer = this.#refuse(new MeshError("invalid_request", message), context, spans);
    const headers = allow === undefined ? [] : [["allow", allow] as const];
    return { ...answer, status, headers: [...answer.headers, ...headers] };
  }

  /** Answers what asks for no worker; `undefined` for the rest. */
  #headersOnly(context: RequestContext, spans: RouteSpans): Answer | undefined {
    const question = modelsQuestion(context.path);
    if (question === undefined) return undefined;
    const answer = this.#models(question.id);
    spans.answered("models", context.requestId);
    return answer;
  }

  /** The models that are served, or the one of that id. Throws `model_not_found`. */
  #models(only: string | undefined): ImmediateAnswer {
    const created = Math.floor(this.#d.clock.wallUnixUs() / 1_000_000);
    const byModel = new Map<string, { id: string; max: number | undefined; root: string }>();
    for (const member of this.#d.core.members.all()) {
      if (!member.ready) continue;
      for (const id of member.models) {
        const max = member.facts?.contextTokensMax;
        byModel.set(id, { id, max, root: member.models[0] ?? id });
      }
    }
    const data = [...byModel.values()].map(({ id, max, root }) => ({
      id,
      object: "model",
      created,
      owned_by: "kvmesh",
      root,
      max_model_len: max,
    }));
    const one = data.find(({ id }) => id === only);
    if (only !== undefined && one === undefined) throw this.#notServed(only);
    return {
      kind: "immediate",
      status: 200,
      headers: [["content-type", "application/json"]],
      body: JSON.stringify(one ?? { object: "list", data }),
      details: "kvmesh_models",
      grpcStatus: 0,
    };
  }

  #route(
    request: ExchangeRequest,
    context: RequestContext,
    spans: RouteSpans,
    answer: (answer: Answer) => void,
  ): WaitingDecision | undefined {
    const body = concat(request.body);
    const openAi = request.truncated
      ? readTruncatedRequest(context.path, body)
      : this.#bodies.read(context.path, body, request.headers.get("content-type"));
    const pool = this.#pool(openAi.model);
    const tokenize = spans.start("tokenize");
    const { path } = context;
    const contentType = request.headers.get("content-type");
    const read = this.#readPrompt(openAi, request.bodyBytes, pool, () => {
      const copy = new Uint8Array(body);
      const reread = (): OpenAiRequest => this.#bodies.read(path, copy, contentType);
      return { bytes: copy.length, reread };
    });
    // The digest is of a body that may be gone once the request has waited.
    const mayPair = !request.truncated && isSplittable(openAi) && this.#mayPair(pool);
    const guard = this.#guardAsk(openAi, pool, request, body);
    const mayRelay = mayPair || (guard?.mode === "relay" && guard.off === "");
    const digest = mayRelay ? new BodyDigest(body) : undefined;
    const { session } = openAi;
    const hints = readHints(
      (name) => request.headers.get(name as RequestHeaderName),
      session === undefined ? undefined : { session },
    );
    const keptBytes = context.bodyMode === "full_duplex" ? request.bodyBytes : 0;
    const admit = (prompt: TokenisedPrompt): WaitingDecision | undefined => {
      spans.tokenized(tokenize, prompt, openAi);
      const asked = { hints, keptBytes, openAi, pool, prompt, digest, mayPair, guard };
      return this.#admit(asked, context, spans, answer);
    };
    if ("read" in read) digest?.keep();
    return "read" in read ? this.#later(read, admit, context, spans, answer) : admit(read);
  }

  /** Goes on with a request once its prompt is read. */
  #later(
    awaited: AwaitedPrompt,
    admit: (prompt: TokenisedPrompt) => WaitingDecision | undefined,
    context: RequestContext,
    spans: RouteSpans,
    answer: (answer: Answer) => void,
  ): WaitingDecision {
    let isCancelled = false;
    let waiting: WaitingDecision | undefined;
    const goOn = async (): Promise<void> => {
      try {
        const prompt = await awaited.read;
        if (!isCancelled) waiting = admit(prompt);
      } catch (error) {
        if (isCancelled) return;
        const mesh = toMeshError(error);
        // As for requests that are decided at once: a broken rule stops the process.
        if (mesh.code === "invariant_violated") throw error;
        answer(this.#refuse(mesh, context, spans));
      }
    };
    void goOn();
    return {
      // A proxy's timer is put off once, so for both waits.
      waitMsMax: encodeMsMax + this.#d.admissionWaitMsMax + answerMarginMs,
      cancel: () => {
        isCancelled = true;
        if (waiting !== undefined) {
          waiting.cancel();
          return;
        }
        awaited.cancel();
        spans.cancelled(context.requestId);
      },
    };
  }

  /** Lets a request whose prompt is read be placed, now or in its turn. */
  #admit(
    of: {
      readonly hints: ReturnType<typeof readHints>;
      /** Memory of its body while it waits, bytes. */
      readonly keptBytes: number;
      readonly openAi: OpenAiRequest;
      readonly pool: string;
      readonly prompt: TokenisedPrompt;
      /** Absent for a request that cannot pass a relay. */
      readonly digest: BodyDigest | undefined;
      /** Whether it can run on two workers. */
      readonly mayPair: boolean;
      readonly guard: GuardAsk | undefined;
    },
    context: RequestContext,
    spans: RouteSpans,
    answer: (answer: Answer) => void,
  ): WaitingDecision | undefined {
    const { hints, keptBytes, openAi, pool, prompt, digest, mayPair, guard } = of;
    const { core, clock, onWaiting } = this.#d;
    const started = clock.now();
    const lookup = spans.start("lookup");
    const input = this.#placeInput({
      openAi,
      pool,
      prompt,
      requestId: context.requestId,
      subset: context.subset,
      isPairable: mayPair,
      guard,
      dryRun: false,
    });
    const waiting = core.placeInTurn(
      {
        input,
        hints,
        bytes: keptBytes + waitingBytes,
        decided: (decision) => {
          // What has waited was looked up again for the worker that it got.
          const waitedMs = decision.admission?.waitedMs ?? 0;
          const lookedUp = waitedMs > 0 ? spans.start("lookup") : lookup;
          this.#settled(decision, { prompt, spans, lookup: lookedUp, started, waitedMs });
          const body = digest === undefined ? undefined : { digest, tenant: hints.tenant };
          answer(this.#answerOf(decision, context, spans, body));
        },
      },
      started,
    );
    if (waiting === undefined) return undefined;
    digest?.keep();
    onWaiting();
    return {
      waitMsMax: waiting.waitMsMax + answerMarginMs,
      cancel: () => {
        waiting.cancel(clock.now());
        spans.cancelled(context.requestId);
      },
    };
  }

  #answerOf(
    decision: Decision,
    context: RequestContext,
    spans: RouteSpans,
    body: DigestedBody | undefined,
  ): Answer {
    const { outcome, admission } = decision;
    if (outcome.kind === "placed") return this.#answer(decision, context.bodyMode, body);
    const retryAfterMs = admission?.retryAfterMs ?? retryAfterDefaultMs;
    const error = new MeshError(outcome.code, outcome.message, { retryAfterMs });
    return this.#refuse(error, context, spans, decision);
  }

  #pool(model: string | undefined): string {
    const { core, defaultPool } = this.#d;
    if (model === undefined) return defaultPool;
    const pool = core.poolOf(model);
    if (pool !== undefined) return pool;
    const known = [...new Set([...core.members.all()].flatMap((m) => m.models))].sort();
    if (known.length === 0) {
      throw new MeshError("no_ready_worker", "no worker has joined the mesh yet", {
        retryAfterMs: retryAfterDefaultMs,
      });
    }
    throw this.#notServed(model);
  }

  #notServed(model: string): MeshError {
    const known = [...new Set([...this.#d.core.members.all()].flatMap((m) => m.models))].sort();
    const served = known.length === 0 ? "no worker has joined yet" : `served: ${known.join(", ")}`;
    return new MeshError(
      "model_not_found",
      `model ${JSON.stringify(model.slice(0, 256))} is not served here; ${served}`,
      { field: "model" },
    );
  }

  #readPrompt(
    openAi: OpenAiRequest,
    bodyBytes: number,
    pool: string,
    keep: () => { readonly bytes: number; readonly reread: () => OpenAiRequest },
  ): TokenisedPrompt | AwaitedPrompt {
    const { runtimes, core } = this.#d;
    const runtime = runtimes.get(pool);
    const contextMax = core.contextMax(pool);
    return this.#reading.read({ openAi, bodyBytes, runtime, contextMax }, keep);
  }

  /** Decides on a call in its turn, or at once when it is a dry run. Rejects with why it is not placed. */
  async #place(options: {
    openAi: OpenAiRequest;
    pool: string;
    prompt: TokenisedPrompt;
    requestId: string;
    subset: ReadonlySet<string> | undefined;
    excluded?: ReadonlySet<string>;
    isPairable?: boolean;
    dryRun: boolean;
    turn: CallTurn;
    /** Memory of its prompt while it waits. */
    bytes: number;
  }): Promise<Decision> {
    const { core, clock } = this.#d;
    const { prompt, turn, bytes } = options;
    const started = clock.now();
    const input = this.#placeInput(options);
    const decision = options.dryRun
      ? core.place(input, started)
      : await this.#placeInTurn(input, turn, bytes);
    const { outcome, admission } = decision;
    const waitedMs = admission?.waitedMs ?? 0;
    this.#settled(decision, { prompt, spans: undefined, lookup: undefined, started, waitedMs });
    if (outcome.kind === "placed") return decision;
    const shedReason = admission?.shedReason ?? "";
    throw new MeshError(outcome.code, outcome.message, {
      retryAfterMs: admission?.retryAfterMs ?? retryAfterDefaultMs,
      ...(shedReason === "" ? {} : { shedReason }),
    });
  }

  /** Rejects with `cancelled` when the caller leaves first; then nothing is reserved. */
  #placeInTurn(input: PlaceInput, { hints, signal }: CallTurn, bytes: number): Promise<Decision> {
    const { core, clock, onWaiting } = this.#d;
    return new Promise((resolve, reject) => {
      const left = (): MeshError => new MeshError("cancelled", "the caller left before its turn");
      if (signal.aborted) {
        reject(left());
        return;
      }
      let forget = (): void => undefined;
      const decided = (decision: Decision): void => {
        signal.removeEventListener("abort", forget);
        resolve(decision);
      };
      const request = { input, hints, bytes: bytes + waitingBytes, decided };
      const waiting = core.placeInTurn(request, clock.now());
      if (waiting === undefined) return;
      forget = () => {
        waiting.cancel(clock.now());
        reject(left());
      };
      signal.addEventListener("abort", forget, { once: true });
      onWaiting();
    });
  }

  #placeInput(options: {
    openAi: OpenAiRequest;
    pool: string;
    prompt: TokenisedPrompt;
    requestId: string;
    subset: ReadonlySet<string> | undefined;
    excluded?: ReadonlySet<string>;
    isPairable?: boolean;
    guard?: GuardAsk | undefined;
    dryRun: boolean;
  }): PlaceInput {
    const { openAi, pool, prompt, excluded, isPairable, guard } = options;
    return {
      requestId: options.requestId === "" ? randomUUID() : options.requestId,
      pool,
      model: openAi.model ?? "",
      promptTokens: prompt.tokens,
      hashes: prompt.hashes,
      tokensMax: openAi.tokensMax,
      answer: answerFormOf(openAi),
      loadOnlyReason: prompt.loadOnly ?? "",
      subset: options.subset,
      ...(excluded === undefined ? {} : { excluded }),
      ...(isPairable === true && prompt.loadOnly === undefined ? { isPairable } : {}),
      ...(guard === undefined ? {} : { guard }),
      dryRun: options.dryRun,
      unixUs: this.#d.clock.wallUnixUs(),
    };
  }

  /** Notes a decision, whatever it is, in its trace and in the metrics, and tells watchers. */
  #settled(
    decision: Decision,
    was: {
      readonly prompt: TokenisedPrompt;
      readonly spans: RouteSpans | undefined;
      readonly lookup: MeshSpan | undefined;
      readonly started: number;
      readonly waitedMs: number;
    },
  ): void {
    const { core, clock, metrics } = this.#d;
    const { prompt, spans, lookup, started, waitedMs } = was;
    decision.decideUs = Math.max(0, clock.now() - started - waitedMs) * 1_000;
    const context = spans?.context;
    if (context !== undefined) {
      decision.traceId = context.traceId;
      decision.traceparent = formatTraceparent(context);
    }
    spans?.admitted(decision);
    spans?.placed(lookup, decision, core);
    if (prompt.loadOnly !== undefined) metrics.loadOnly.inc({ reason: prompt.loadOnly });
    const { outcome, admission, pair, guard } = decision;
    if (pair !== undefined) metrics.pairDecisions.inc({ form: pair.form, why: pair.why });
    if (guard !== undefined) {
      metrics.guardDecisions.inc({ state: guard.off === "" ? "on" : "off", reason: guard.off });
    }
    metrics.decisions.inc({ outcome: outcome.kind, policy: decision.policy });
    if (admission !== undefined) {
      const { className, shedReason } = admission;
      if (shedReason !== "") metrics.shed.inc({ class: className, reason: shedReason });
      if (waitedMs > 0) metrics.admissionWait.observe({ class: className }, waitedMs / 1_000);
    }
    this.#d.onDecision(decision);
    const { chosen } = decision;
    if (outcome.kind !== "placed" || chosen === undefined) return;
    if (prompt.loadOnly === undefined && prompt.tokens > 0) {
      metrics.matchedBlocks.observe(chosen.matchedBlocks);
      metrics.prefixHitRatio.observe(chosen.matchedTokens / prompt.tokens);
    }
  }

  /** Whether requests of a pool may run on two workers now. */
  #mayPair(pool: string): boolean {
    return this.#d.signer !== undefined && this.#d.core.pairs.isPossible(pool);
  }

  /** How the stream of a request is to be guarded; `undefined` when it need not. */
  #guardAsk(
    openAi: OpenAiRequest,
    pool: string,
    request: ExchangeRequest,
    body: Uint8Array,
  ): GuardAsk | undefined {
    if (this.#d.signer === undefined) return undefined;
    return this.#d.guards?.of(openAi, pool, {
      header: request.headers.get("x-kvmesh-guard"),
      body: request.truncated ? undefined : body,
    });
  }

  /** The placement of a pair or of a guarded stream for the relay that is to carry it out. */
  #signed(decision: Decision, body: DigestedBody | undefined): string {
    const { signer } = this.#d;
    invariant(body !== undefined && signer !== undefined, "nothing is relayed without its digest");
    const { tenant, digest } = body;
    const guarded = decision.guard?.off === "";
    const token = signer.sign(decision, { sha256: digest.sha256, tenant, guarded });
    invariant(token !== undefined, "a relay was picked for workers that are no members");
    return token;
  }

  #answer(decision: Decision, bodyMode: string, body: DigestedBody | undefined): Answer {
    const single = bodyMode === "full_duplex" && !this.#d.duplexFallbacks;
    const endpoints = single ? decision.endpoints.slice(0, 1) : decision.endpoints;
    const destination = endpoints.join(",");
    const { chosen } = decision;
    const { pair, guard } = decision;
    const isRelayed = pair?.form === "pair" || (guard !== undefined && guard.relays.length > 0);
    const setHeaders: [string, string][] = [
      [headerNames.pool, isRelayed ? relaysCluster : poolCluster(decision.pool)],
      [headerNames.destination, destination],
    ];
    if (isRelayed) setHeaders.push([headerNames.placement, this.#signed(decision, body)]);
    return {
      kind: "route",
      setHeaders,
      removeHeaders: [],
      metadata: {
        "envoy.lb": { [headerNames.destination]: destination },
        kvmesh: {
          decision: decision.id,
          traceparent: decision.traceparent,
          predicted_ttft_ms: (chosen?.predictedTtftMs ?? 0).toFixed(3),
          worker: decision.workerId ?? "",
          ...(guard === undefined || guard.off === ""
            ? undefined
            : { guard: `off; reason=${guard.off}` }),
        },
      },
    };
  }

  #refuse(
    error: MeshError,
    context: RequestContext,
    spans: RouteSpans,
    decision?: Decision,
  ): ImmediateAnswer {
    this.#d.metrics.refused.inc({ code: error.code });
    spans.refused(error, context.requestId, decision?.id);
    const shedReason = decision?.admission?.shedReason ?? "";
    return immediateError(error, shedReason === "" ? error.code : shedReason);
  }
}

/** What a placement binds of a request beside the decision. */
interface DigestedBody {
  readonly digest: BodyDigest;
  readonly tenant: string;
}

/**
 * Whether a request's prompt and its answer can be computed on two workers: one answer, on a path that relays carry.
 */
function isSplittable({ kind, choices = 1 }: OpenAiRequest): boolean {
  return (kind === "chat" || kind === "completions") && choices === 1;
}

/** An error as the answer to the client: OpenAI shape, Retry-After where it makes sense. */
export function immediateError(error: MeshError, shedReason: string = error.code): ImmediateAnswer {
  const { status, body } = openAiError(error);
  const headers: [string, string][] = [["content-type", "application/json"]];
  if (status === 429 || status === 503) {
    const waitMs = Math.max(1, error.retryAfterMs ?? retryAfterDefaultMs);
    headers.push(["retry-after", Math.ceil(waitMs / 1_000).toString()]);
    headers.push(["retry-after-ms", Math.ceil(waitMs).toString()]);
    headers.push(["x-kvmesh-shed-reason", shedReason]);
  }
  return {
    kind: "immediate",
    status,
    headers,
    body,
    details: `kvmesh_${error.code}`,
    grpcStatus: wire[error.code].grpc,
  };
}
