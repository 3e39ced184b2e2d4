import { relayAttributeSpecs, relaySpanNames, relaySpanSpecs } from "./trace-catalogue-relay.ts";

// Every span and attribute name that a trace of the mesh may hold, with kind, type, unit and meaning. Emitters take
// names from `spanNames` and `attributes`; the documentation table and the end-to-end check come from the same lists.

/** Types that an attribute value may have. `int` is a whole number; `double` accepts whole numbers too. */
export type AttributeType =
  "string" | "int" | "double" | "boolean" | "string[]" | "int[]" | "double[]";

/** One attribute: its wire name, type, unit (UCUM-like; empty when it has none) and meaning. */
export interface AttributeSpec {
  readonly name: string;
  readonly type: AttributeType;
  readonly unit: string;
  readonly meaning: string;
  /** Closed set of values; absent when any value of the type is good. */
  readonly values?: readonly string[];
}

/** Why a prediction and its observation differ; the values of `kvmesh.difference.cause`. */
export const differenceCauses = [
  "none",
  "evicted",
  "index_gap",
  "concurrent",
  "queue",
  "hash_mismatch",
  "salted",
  "link",
  "not_as_picked",
  "unknown",
] as const;

/**
 * Closed list of `error.type` values on spans of ours. It extends the failure list of the wire with the ways in which
 * a served request can end badly.
 */
export const errorTypes = [
  "no_endpoint",
  "shed_overload",
  "deadline_exceeded",
  "engine_crash",
  "client_cancel",
  "bad_request",
  "model_not_found",
  "request_too_large",
  "auth",
  "index_stale",
  "upstream_reset",
  "upstream_status",
  "engine_frozen",
  "kv_transfer_failed",
  "resume_lost",
  "internal",
] as const;

const attributeSpecs = {
  // OpenTelemetry conventions.
  errorType: {
    name: "error.type",
    type: "string",
    unit: "",
    meaning: "Why the operation failed; absent on success.",
    values: errorTypes,
  },
  genAiOperationName: {
    name: "gen_ai.operation.name",
    type: "string",
    unit: "",
    meaning: "Kind of request.",
    values: ["chat", "text_completion", "embeddings", "other"],
  },
  genAiRequestModel: {
    name: "gen_ai.request.model",
    type: "string",
    unit: "",
    meaning: "Model name in the request.",
  },
  genAiConversationId: {
    name: "gen_ai.conversation.id",
    type: "string",
    unit: "",
    meaning: "Session key that the caller named; absent when it named none.",
  },
  genAiUsageInputTokens: {
    name: "gen_ai.usage.input_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Prompt length after the chat template.",
  },
  httpResponseStatusCode: {
    name: "http.response.status_code",
    type: "int",
    unit: "",
    meaning: "HTTP status that the client got, of a leg its engine's; 0 when none was sent.",
  },
  httpResponseBodySize: {
    name: "http.response.body.size",
    type: "int",
    unit: "By",
    meaning: "Bytes of the answer's body.",
  },
  serverAddress: {
    name: "server.address",
    type: "string",
    unit: "",
    meaning: "Host of the chosen (route), serving (serve) or asked (legs) engine.",
  },
  serverPort: {
    name: "server.port",
    type: "int",
    unit: "",
    meaning: "Port of that engine.",
  },
  rpcSystemName: {
    name: "rpc.system.name",
    type: "string",
    unit: "",
    meaning: "Always grpc: the decision is asked over gRPC.",
    values: ["grpc"],
  },
  rpcMethod: {
    name: "rpc.method",
    type: "string",
    unit: "",
    meaning:
      "Fully qualified method that asked for the decision (ext_proc Process, or Router/Place).",
  },

  // Join keys.
  decisionId: {
    name: "kvmesh.decision.id",
    type: "string",
    unit: "",
    meaning: "Decision id, `<router instance>.<epoch>.<n>`; names the decision in explain.",
  },
  requestId: {
    name: "kvmesh.request.id",
    type: "string",
    unit: "",
    meaning: "x-request-id; joins logs, decisions and engine request ids.",
  },
  workerId: {
    name: "kvmesh.worker.id",
    type: "string",
    unit: "",
    meaning: "Worker chosen (route), serving (serve) or asked (legs).",
  },
  poolId: {
    name: "kvmesh.pool.id",
    type: "string",
    unit: "",
    meaning: "Pool of the model.",
  },

  // kvmesh.route
  routePolicy: {
    name: "kvmesh.route.policy",
    type: "string",
    unit: "",
    meaning: "Placement policy that decided.",
  },
  routeOutcome: {
    name: "kvmesh.route.outcome",
    type: "string",
    unit: "",
    meaning: "What was decided.",
    values: ["picked", "no_endpoint", "shed", "refused", "answered", "passed", "cancelled"],
  },
  routeMode: {
    name: "kvmesh.route.mode",
    type: "string",
    unit: "",
    meaning: "Aggregated, or prefill and decode on different workers.",
    values: ["agg", "pd"],
  },
  routePrefillWorkerId: {
    name: "kvmesh.route.prefill_worker_id",
    type: "string",
    unit: "",
    meaning:
      "Worker that computes the prompt of a pair; `kvmesh.worker.id` is the one that decodes.",
  },
  routeFormReason: {
    name: "kvmesh.route.form_reason",
    type: "string",
    unit: "",
    meaning: "Why it runs as a pair or whole; absent where the pool has no pairs.",
  },
  routeFormMarginMs: {
    name: "kvmesh.route.form_margin_ms",
    type: "double",
    unit: "ms",
    meaning:
      "Best cost of the form not chosen minus that of the chosen one; negative when a setting chose.",
  },
  routeEndpoint: {
    name: "kvmesh.route.endpoint",
    type: "string",
    unit: "",
    meaning: "Endpoint picked first, ip:port.",
  },
  routeFallbackEndpoints: {
    name: "kvmesh.route.fallback_endpoints",
    type: "string[]",
    unit: "",
    meaning: "Endpoints to walk after it, in order.",
  },
  routeLoadOnlyReason: {
    name: "kvmesh.route.load_only_reason",
    type: "string",
    unit: "",
    meaning: "Why the prompt was placed by load alone; absent when its tokens were used.",
  },
  routeDecideUs: {
    name: "kvmesh.route.decide_us",
    type: "double",
    unit: "us",
    meaning: "Time from parsed request to placement, waiting for the body excluded.",
  },
  tenantClass: {
    name: "kvmesh.tenant.class",
    type: "string",
    unit: "",
    meaning: "Hashed tenant; never the tenant's own name.",
  },
  sloClass: {
    name: "kvmesh.slo.class",
    type: "string",
    unit: "",
    meaning: "Latency class that the caller asked for.",
  },
  admissionClass: {
    name: "kvmesh.admission.class",
    type: "string",
    unit: "",
    meaning: "Class in whose queue the request waited.",
  },
  admissionWaitMs: {
    name: "kvmesh.admission.wait_ms",
    type: "double",
    unit: "ms",
    meaning: "Time that it waited; 0 when it was refused at once.",
  },
  admissionPosition: {
    name: "kvmesh.admission.position_at_enqueue",
    type: "int",
    unit: "{request}",
    meaning: "Requests that waited in the pool when it came.",
  },
  admissionBlockedBy: {
    name: "kvmesh.admission.blocked_by",
    type: "string",
    unit: "",
    meaning: "Why it waited: no worker had room, or others had their turn before it.",
    values: ["capacity", "fairness"],
  },
  admissionShedReason: {
    name: "kvmesh.admission.shed_reason",
    type: "string",
    unit: "",
    meaning: "Why it was refused, as in x-kvmesh-shed-reason; absent when it was placed.",
    values: [
      "tenant_rate",
      "tenant_queue",
      "tenant_share",
      "queue_full",
      "predicted_wait",
      "deadline",
      "wait_timeout",
      "sheddable",
      "shutting_down",
    ],
  },
  admissionRetryAfterMs: {
    name: "kvmesh.admission.retry_after_ms",
    type: "int",
    unit: "ms",
    meaning: "When the refused caller was told to try again.",
  },
  parentUnsampled: {
    name: "kvmesh.parent.unsampled",
    type: "boolean",
    unit: "",
    meaning: "The caller's context was not sampled, so this trace holds only spans of ours.",
  },
  traceSpansExpected: {
    name: "kvmesh.trace.spans_expected",
    type: "int",
    unit: "{span}",
    meaning:
      "Spans that routers write for this request (kvmesh.route, its children and kvmesh.serve), or a relay does (kvmesh.request and its children).",
  },

  // Predictions, repeated beside what was observed.
  predictedTtftMs: {
    name: "kvmesh.predicted.ttft_ms",
    type: "double",
    unit: "ms",
    meaning: "Time to first token that the decision expected of the chosen worker.",
  },
  predictedCachedTokens: {
    name: "kvmesh.predicted.cached_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Prompt tokens that the decision expected to be cached there.",
  },
  predictedTransferMs: {
    name: "kvmesh.predicted.transfer_ms",
    type: "double",
    unit: "ms",
    meaning:
      "Time that the decision expected the KV of a pair to take, its wait for the link included.",
  },
  predictedTransferBytes: {
    name: "kvmesh.predicted.transfer_bytes",
    type: "int",
    unit: "By",
    meaning: "Bytes of KV that the decision expected to be moved between the engines of a pair.",
  },
  observedTtftMs: {
    name: "kvmesh.observed.ttft_ms",
    type: "double",
    unit: "ms",
    meaning:
      "From the request's first byte at Envoy to the first byte of a streamed answer's body; absent otherwise.",
  },
  answerForm: {
    name: "kvmesh.answer.form",
    type: "string",
    unit: "",
    meaning: "How the answer was asked for; only a streamed one shows its first token.",
    values: ["stream", "whole", "unknown"],
  },
  observedCachedTokens: {
    name: "kvmesh.observed.cached_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Prompt tokens that the engine had cached; absent when unknown.",
  },
  observedDurationMs: {
    name: "kvmesh.observed.duration_ms",
    type: "double",
    unit: "ms",
    meaning: "From the request's first byte at Envoy to the answer's last.",
  },
  differenceTtftMs: {
    name: "kvmesh.difference.ttft_ms",
    type: "double",
    unit: "ms",
    meaning: "Observed minus predicted time to first token.",
  },
  differenceCachedTokens: {
    name: "kvmesh.difference.cached_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Observed minus predicted cached tokens.",
  },
  differenceCause: {
    name: "kvmesh.difference.cause",
    type: "string",
    unit: "",
    meaning: "Main cause of the difference.",
    values: differenceCauses,
  },
  routeRegretMs: {
    name: "kvmesh.route.regret_ms",
    type: "double",
    unit: "ms",
    meaning: "Observed TTFT minus the best TTFT predicted for another candidate; negative is good.",
  },

  // kvmesh.route.body
  bodyMode: {
    name: "kvmesh.body.mode",
    type: "string",
    unit: "",
    meaning: "How Envoy sent the body.",
    values: ["none", "buffered", "buffered_partial", "streamed", "full_duplex_streamed"],
  },
  bodyBytes: {
    name: "kvmesh.body.bytes",
    type: "int",
    unit: "By",
    meaning: "Bytes of the body.",
  },
  bodyChunks: {
    name: "kvmesh.body.chunks",
    type: "int",
    unit: "",
    meaning: "Messages that it came in.",
  },
  bodyWaitMs: {
    name: "kvmesh.body.wait_ms",
    type: "double",
    unit: "ms",
    meaning: "Waiting for the client: from the headers' arrival to the last part of the body.",
  },
  bodyPartial: {
    name: "kvmesh.body.partial",
    type: "boolean",
    unit: "",
    meaning: "Envoy sent only the beginning, because the body was larger than its buffer.",
  },

  // kvmesh.route.tokenize
  tokenizeTokens: {
    name: "kvmesh.tokenize.tokens",
    type: "int",
    unit: "{token}",
    meaning: "Tokens of the prompt.",
  },
  tokenizeMessages: {
    name: "kvmesh.tokenize.messages",
    type: "int",
    unit: "",
    meaning: "Messages of a chat; 1 for a plain prompt.",
  },
  tokenizeCachedMessages: {
    name: "kvmesh.tokenize.cached_messages",
    type: "int",
    unit: "",
    meaning: "Messages whose tokens came from the cache.",
  },
  tokenizeBytes: {
    name: "kvmesh.tokenize.bytes",
    type: "int",
    unit: "By",
    meaning: "UTF-8 bytes of text after the template.",
  },
  tokenizeBackend: {
    name: "kvmesh.tokenize.backend",
    type: "string",
    unit: "",
    meaning: "Tokenizer that ran.",
  },

  // kvmesh.route.lookup
  indexBlocksTotal: {
    name: "kvmesh.index.blocks_total",
    type: "int",
    unit: "{block}",
    meaning: "Full blocks of the prompt that were looked up.",
  },
  indexBlocksMatchedMax: {
    name: "kvmesh.index.blocks_matched_max",
    type: "int",
    unit: "{block}",
    meaning: "Leading blocks matched on the best worker.",
  },
  indexTierBlocks: {
    name: "kvmesh.index.tier_blocks",
    type: "int[]",
    unit: "{block}",
    meaning: "Blocks matched there by tier: device, host, disk, remote.",
  },
  indexWorkersMatched: {
    name: "kvmesh.index.workers_matched",
    type: "int",
    unit: "",
    meaning: "Workers with at least one matched block.",
  },
  indexSeq: {
    name: "kvmesh.index.seq",
    type: "int",
    unit: "",
    meaning: "Last event applied from the best worker when the index was read.",
  },
  indexAgeMs: {
    name: "kvmesh.index.age_ms",
    type: "double",
    unit: "ms",
    meaning: "Oldest age of the block streams behind the answer.",
  },
  indexGap: {
    name: "kvmesh.index.gap",
    type: "boolean",
    unit: "",
    meaning: "A block stream behind the answer had a gap and was being resynchronised.",
  },
  indexSalted: {
    name: "kvmesh.index.salted",
    type: "boolean",
    unit: "",
    meaning: "The hash root holds a tenant salt.",
  },

  // kvmesh.route.score: parallel arrays, cheapest first, at most `candidatesMax` long.
  candidateId: {
    name: "kvmesh.candidate.id",
    type: "string[]",
    unit: "",
    meaning: "Workers, cheapest first, at most 8; the arrays below are parallel to it.",
  },
  candidateEndpoint: {
    name: "kvmesh.candidate.endpoint",
    type: "string[]",
    unit: "",
    meaning: "Endpoint, ip:port.",
  },
  candidateTotalMs: {
    name: "kvmesh.candidate.total_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Cost: the sum of the terms.",
  },
  candidateQueueMs: {
    name: "kvmesh.candidate.queue_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Term: waiting behind work already there.",
  },
  candidatePrefillMs: {
    name: "kvmesh.candidate.prefill_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Term: computing the uncached part of the prompt.",
  },
  candidateDecodeMs: {
    name: "kvmesh.candidate.decode_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Term: decoding the expected answer.",
  },
  candidateSlowdownMs: {
    name: "kvmesh.candidate.slowdown_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Term: what the requests already decoding there lose.",
  },
  candidateEvictionMs: {
    name: "kvmesh.candidate.eviction_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Term: what evicted blocks will cost later.",
  },
  candidateOtherMs: {
    name: "kvmesh.candidate.other_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Sum of every term that has no array of its own.",
  },
  candidatePredictedTtftMs: {
    name: "kvmesh.candidate.predicted_ttft_ms",
    type: "double[]",
    unit: "ms",
    meaning: "Expected time to first token.",
  },
  candidateMatchedTokens: {
    name: "kvmesh.candidate.matched_tokens",
    type: "int[]",
    unit: "{token}",
    meaning: "Prompt tokens believed to be cached there.",
  },
  candidateOpenRequests: {
    name: "kvmesh.candidate.open_requests",
    type: "int[]",
    unit: "",
    meaning: "Open reservations there, all routers'.",
  },
  candidateSuspect: {
    name: "kvmesh.candidate.suspect",
    type: "string[]",
    unit: "",
    meaning: "Those of the candidates whose block view was being resynchronised, by worker id.",
  },
  routeCandidates: {
    name: "kvmesh.route.candidates",
    type: "int",
    unit: "",
    meaning: "Workers that could have served, also past the eighth.",
  },
  routeFiltered: {
    name: "kvmesh.route.filtered",
    type: "string[]",
    unit: "",
    meaning: "Workers that could not, as `reason=count`, by reason.",
  },
  routeMarginMs: {
    name: "kvmesh.route.margin_ms",
    type: "double",
    unit: "ms",
    meaning: "Cost of the second candidate minus the first's; 0 with one candidate.",
  },
  routeTieBreak: {
    name: "kvmesh.route.tie_break",
    type: "string",
    unit: "",
    meaning: "What settled a tie; absent without one.",
  },
  routeBestAlternative: {
    name: "kvmesh.route.best_alternative",
    type: "string",
    unit: "",
    meaning: "Second candidate; absent with one candidate.",
  },
  routeWeightsVersion: {
    name: "kvmesh.route.weights_version",
    type: "string",
    unit: "",
    meaning: "Version of the cost weights in force.",
  },

  // kvmesh.serve
  servePickedEndpoint: {
    name: "kvmesh.serve.picked_endpoint",
    type: "string",
    unit: "",
    meaning: "Endpoint picked first, ip:port.",
  },
  serveEndpoint: {
    name: "kvmesh.serve.endpoint",
    type: "string",
    unit: "",
    meaning: "Endpoint that served, ip:port; absent when none did.",
  },
  serveAsPicked: {
    name: "kvmesh.serve.as_picked",
    type: "boolean",
    unit: "",
    meaning: "The endpoint that served is the one picked first.",
  },
  serveAttempts: {
    name: "kvmesh.serve.attempts",
    type: "int",
    unit: "",
    meaning: "Tries upstream.",
  },
  serveResponseFlags: {
    name: "kvmesh.serve.response_flags",
    type: "string",
    unit: "",
    meaning: "Envoy's response flags, short names joined by commas; empty when it set none.",
  },
  serveClosedBy: {
    name: "kvmesh.serve.closed_by",
    type: "string",
    unit: "",
    meaning: "How the reservation was closed.",
    values: ["access_log", "released", "reconciled", "expired"],
  },
  serveUploadMs: {
    name: "kvmesh.serve.upload_ms",
    type: "double",
    unit: "ms",
    meaning: "From the request's first byte at Envoy to its last.",
  },
  serveUpstreamStartMs: {
    name: "kvmesh.serve.upstream_start_ms",
    type: "double",
    unit: "ms",
    meaning: "From the request's first byte at Envoy to the first byte sent to the engine.",
  },
  serveResponseHeadersMs: {
    name: "kvmesh.serve.response_headers_ms",
    type: "double",
    unit: "ms",
    meaning:
      "From the request's first byte at Envoy to the answer's headers (not the first token).",
  },

  ...relayAttributeSpecs,

  // llm_request, the engine's own. Names are the engine's (vLLM 0.32.0, `vllm/tracing`); times are seconds.
  engineRequestId: {
    name: "gen_ai.request.id",
    type: "string",
    unit: "",
    meaning: "The engine's request id; holds x-request-id.",
  },
  engineRequestN: {
    name: "gen_ai.request.n",
    type: "int",
    unit: "",
    meaning: "Answers asked for.",
  },
  engineRequestMaxTokens: {
    name: "gen_ai.request.max_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Limit of the answer.",
  },
  engineRequestTopP: {
    name: "gen_ai.request.top_p",
    type: "double",
    unit: "",
    meaning: "Sampling setting.",
  },
  engineRequestTemperature: {
    name: "gen_ai.request.temperature",
    type: "double",
    unit: "",
    meaning: "Sampling setting; absent at its default.",
  },
  enginePromptTokens: {
    name: "gen_ai.usage.prompt_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Prompt length as the engine counted it.",
  },
  engineCompletionTokens: {
    name: "gen_ai.usage.completion_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Answer length.",
  },
  engineTtftSeconds: {
    name: "gen_ai.latency.time_to_first_token",
    type: "double",
    unit: "s",
    meaning: "From arrival at the engine to its first token.",
  },
  engineE2eSeconds: {
    name: "gen_ai.latency.e2e",
    type: "double",
    unit: "s",
    meaning: "From arrival at the engine to its last token.",
  },
  engineQueueSeconds: {
    name: "gen_ai.latency.time_in_queue",
    type: "double",
    unit: "s",
    meaning: "Waiting in the engine before the first step.",
  },
  enginePrefillSeconds: {
    name: "gen_ai.latency.time_in_model_prefill",
    type: "double",
    unit: "s",
    meaning: "From the first step to the first token.",
  },
  engineDecodeSeconds: {
    name: "gen_ai.latency.time_in_model_decode",
    type: "double",
    unit: "s",
    meaning: "From the first token to the last.",
  },
  engineInferenceSeconds: {
    name: "gen_ai.latency.time_in_model_inference",
    type: "double",
    unit: "s",
    meaning: "Prefill and decode together.",
  },
} as const satisfies Record<string, AttributeSpec>;

/** Candidates written to `kvmesh.route.score`; further ones are only counted. */
export const candidatesMax = 8;

type AttributeSpecs = typeof attributeSpecs;

/** Short name of an attribute, as code calls it. */
export type AttributeKey = keyof AttributeSpecs;

/** Wire name of an attribute. */
export type AttributeName = AttributeSpecs[AttributeKey]["name"];

/** Wire names by short name: `attributes.decisionId` is `"kvmesh.decision.id"`. */
export const attributes = Object.fromEntries(
  Object.entries(attributeSpecs).map(([key, spec]) => [key, spec.name]),
) as { readonly [K in AttributeKey]: AttributeSpecs[K]["name"] };

/** The whole attribute list, by short name. */
export const attributeCatalogue: Readonly<Record<AttributeKey, AttributeSpec>> = attributeSpecs;

/**
 * Resource attributes of every process of ours. `kvmesh.clock.offset_ms` is this host's wall clock minus the
 * reference host's, as measured on the join stream: subtract it from a span's times to compare hosts.
 */
export const resourceAttributes = {
  serviceName: "service.name",
  serviceInstanceId: "service.instance.id",
  serviceVersion: "service.version",
  clockOffsetMs: "kvmesh.clock.offset_ms",
} as const;

/** Constant span names. The two of Envoy with a cluster or method inside are patterns, see `spanCatalogue`. */
export const spanNames = {
  ingress: "ingress",
  route: "kvmesh.route",
  routeBody: "kvmesh.route.body",
  routeTokenize: "kvmesh.route.tokenize",
  routeLookup: "kvmesh.route.lookup",
  routeAdmission: "kvmesh.route.admission",
  routeScore: "kvmesh.route.score",
  serve: "kvmesh.serve",
  llmRequest: "llm_request",
  ...relaySpanNames,
} as const;

/** Constant name of a span. */
export type SpanName = (typeof spanNames)[keyof typeof spanNames];

/** OpenTelemetry span kinds, lower case. */
export type SpanKindName = "internal" | "server" | "client" | "producer" | "consumer";

/** One span: who writes it, below what, and with which attributes. */
export interface SpanSpec {
  /** Constant name, or how a varying name is written in the documentation. */
  readonly name: string;
  /** Matches the names of a span whose name varies; absent when `name` is constant. */
  readonly pattern?: RegExp;
  readonly kind: SpanKindName;
  /** Who writes it. Attributes of `envoy` and `engine` are theirs: only the ones listed here are checked. */
  readonly owner: "router" | "relay" | "envoy" | "engine";
  readonly parent: string;
  readonly meaning: string;
  /** Attributes that are always there. */
  readonly required: readonly AttributeKey[];
  /** Attributes that are there when they apply. */
  readonly optional: readonly AttributeKey[];
}

/** Every span of a request's trace, in the order in which a reader meets them. */
export const spanCatalogue: readonly SpanSpec[] = [
  {
    name: spanNames.ingress,
    kind: "server",
    owner: "envoy",
    parent: "the caller's span, or none",
    meaning: "The whole request as Envoy saw it.",
    required: [],
    optional: [],
  },
  {
    name: "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress",
    pattern: /^async .*ext_proc.* egress$/u,
    kind: "client",
    owner: "envoy",
    parent: "ingress",
    meaning: "Envoy's side stream to the router.",
    required: [],
    optional: [],
  },
  {
    name: spanNames.route,
    kind: "server",
    owner: "router",
    parent: "Envoy's ext_proc span",
    meaning:
      "The decision; ends when the endpoint is returned. A differing trace in the HTTP header is a link.",
    required: ["decisionId", "requestId", "routeOutcome"],
    optional: [
      "errorType",
      "genAiOperationName",
      "genAiRequestModel",
      "genAiConversationId",
      "genAiUsageInputTokens",
      "httpResponseStatusCode",
      "serverAddress",
      "serverPort",
      "rpcSystemName",
      "rpcMethod",
      "workerId",
      "poolId",
      "routePolicy",
      "routeMode",
      "routePrefillWorkerId",
      "routeFormReason",
      "routeFormMarginMs",
      "predictedTransferMs",
      "predictedTransferBytes",
      "routeEndpoint",
      "routeFallbackEndpoints",
      "routeLoadOnlyReason",
      "routeDecideUs",
      "predictedTtftMs",
      "predictedCachedTokens",
      "tenantClass",
      "sloClass",
      "parentUnsampled",
      "traceSpansExpected",
    ],
  },
  {
    name: spanNames.routeBody,
    kind: "internal",
    owner: "router",
    parent: spanNames.route,
    meaning: "Waiting for the request's body.",
    required: ["bodyBytes", "bodyChunks", "bodyWaitMs"],
    optional: ["bodyMode", "bodyPartial", "errorType"],
  },
  {
    name: spanNames.routeTokenize,
    kind: "internal",
    owner: "router",
    parent: spanNames.route,
    meaning: "Chat template and tokens.",
    required: ["tokenizeTokens", "tokenizeBackend"],
    optional: ["tokenizeMessages", "tokenizeCachedMessages", "tokenizeBytes", "errorType"],
  },
  {
    name: spanNames.routeLookup,
    kind: "internal",
    owner: "router",
    parent: spanNames.route,
    meaning: "Hashing the blocks and looking the prefix up.",
    required: ["indexBlocksTotal", "indexBlocksMatchedMax"],
    optional: [
      "indexTierBlocks",
      "indexWorkersMatched",
      "indexSeq",
      "indexAgeMs",
      "indexGap",
      "indexSalted",
      "errorType",
    ],
  },
  {
    name: spanNames.routeAdmission,
    kind: "internal",
    owner: "router",
    parent: spanNames.route,
    meaning:
      "Waiting for a worker with room, or being refused; absent for requests placed at once.",
    required: ["admissionClass", "admissionWaitMs", "admissionPosition"],
    optional: ["admissionBlockedBy", "admissionShedReason", "admissionRetryAfterMs", "errorType"],
  },
  {
    name: spanNames.routeScore,
    kind: "internal",
    owner: "router",
    parent: spanNames.route,
    meaning: "Every candidate with every term, and why the others were left out.",
    required: ["routeCandidates", "routeFiltered"],
    optional: [
      "candidateId",
      "candidateEndpoint",
      "candidateTotalMs",
      "candidateQueueMs",
      "candidatePrefillMs",
      "candidateDecodeMs",
      "candidateSlowdownMs",
      "candidateEvictionMs",
      "candidateOtherMs",
      "candidatePredictedTtftMs",
      "candidateMatchedTokens",
      "candidateOpenRequests",
      "candidateSuspect",
      "routeMarginMs",
      "routeTieBreak",
      "routeBestAlternative",
      "routeWeightsVersion",
      "errorType",
    ],
  },
  {
    name: "router <cluster> egress",
    pattern: /^router .+ egress$/u,
    kind: "client",
    owner: "envoy",
    parent: "ingress",
    meaning: "One try upstream.",
    required: [],
    optional: [],
  },
  ...relaySpanSpecs,
  {
    name: spanNames.llmRequest,
    kind: "server",
    owner: "engine",
    parent: "router <cluster> egress, or the relay's leg",
    meaning: "The request inside the engine, if it traces.",
    required: ["engineRequestId", "enginePromptTokens", "engineE2eSeconds"],
    optional: [
      "engineRequestN",
      "engineRequestMaxTokens",
      "engineRequestTopP",
      "engineRequestTemperature",
      "engineCompletionTokens",
      "engineTtftSeconds",
      "engineQueueSeconds",
      "enginePrefillSeconds",
      "engineDecodeSeconds",
      "engineInferenceSeconds",
    ],
  },
  {
    name: spanNames.serve,
    kind: "internal",
    owner: "router",
    parent: spanNames.route,
    meaning:
      "From the decision to the answer's end; written when the access log closes the request.",
    required: [
      "decisionId",
      "requestId",
      "serveAttempts",
      "serveAsPicked",
      "httpResponseStatusCode",
    ],
    optional: [
      "errorType",
      "serverAddress",
      "serverPort",
      "workerId",
      "httpResponseBodySize",
      "servePickedEndpoint",
      "serveEndpoint",
      "serveResponseFlags",
      "serveClosedBy",
      "serveUploadMs",
      "serveUpstreamStartMs",
      "serveResponseHeadersMs",
      "answerForm",
      "predictedTtftMs",
      "predictedCachedTokens",
      "observedTtftMs",
      "observedCachedTokens",
      "observedDurationMs",
      "differenceTtftMs",
      "differenceCachedTokens",
      "differenceCause",
      "routeRegretMs",
    ],
  },
];

/** Value of an attribute by its declared type. */
type ValueOf<T extends AttributeType> = T extends "string"
  ? string
  : T extends "int" | "double"
    ? number
    : T extends "boolean"
      ? boolean
      : T extends "string[]"
        ? readonly string[]
        : readonly number[];

/** Attributes for an emitter: only catalogue names, each with a value of its declared type. */
export type CatalogueAttributes = {
  readonly [K in AttributeKey as AttributeSpecs[K]["name"]]?: ValueOf<AttributeSpecs[K]["type"]>;
};

/** What the check needs of a finished span. `kind` is compared only when given. */
export interface CheckedSpan {
  readonly name: string;
  readonly kind?: string;
  readonly attributes: Readonly<Record<string, unknown>>;
}

/** The entry for a span name; `undefined` when the catalogue has none. */
export function findSpanSpec(name: string): SpanSpec | undefined {
  return spanCatalogue.find((spec) =>
    spec.pattern ? spec.pattern.test(name) : spec.name === name,
  );
}

/**
 * Compares spans with the catalogue and returns one sentence per difference, without repeats; empty means all agree.
 * Reported: unknown span names, wrong kinds, and on spans of ours unknown, missing, ill-typed and out-of-set
 * attributes. On Envoy's and the engine's spans only listed attributes are checked, and `kvmesh.` names refused.
 */
export function checkAgainstCatalogue(spans: readonly CheckedSpan[]): string[] {
  const problems = new Set<string>();
  for (const span of spans) {
    const spec = findSpanSpec(span.name);
    if (spec === undefined) {
      problems.add(`span "${span.name}" is not in the catalogue`);
      continue;
    }
    if (span.kind !== undefined && span.kind !== spec.kind) {
      problems.add(`span "${span.name}" has kind ${span.kind}, expected ${spec.kind}`);
    }
    for (const problem of checkAttributes(span, spec)) problems.add(problem);
  }
  return [...problems];
}

function checkAttributes(span: CheckedSpan, spec: SpanSpec): string[] {
  const problems: string[] = [];
  const listed = new Map<string, AttributeSpec>();
  for (const key of [...spec.required, ...spec.optional]) {
    listed.set(attributeCatalogue[key].name, attributeCatalogue[key]);
  }
  for (const key of spec.required) {
    const { name } = attributeCatalogue[key];
    if (span.attributes[name] === undefined) problems.push(`span "${span.name}" lacks ${name}`);
  }
  for (const [name, value] of Object.entries(span.attributes)) {
    const attribute = listed.get(name);
    if (attribute === undefined) {
      const isOurs = spec.owner === "router" || spec.owner === "relay";
      if (isOurs || name.startsWith("kvmesh.")) {
        problems.push(`span "${span.name}" has ${name}, which the catalogue does not list for it`);
      }
      continue;
    }
    if (!hasType(value, attribute.type)) {
      problems.push(
        `span "${span.name}": ${name} is not ${attribute.type} but ${describeType(value)}`,
      );
    } else if (attribute.values !== undefined && !attribute.values.includes(String(value))) {
      problems.push(
        `span "${span.name}": ${name} is "${String(value)}", expected one of ${attribute.values.join(", ")}`,
      );
    }
  }
  return problems;
}

function hasType(value: unknown, type: AttributeType): boolean {
  switch (type) {
    case "string":
    case "boolean":
      return typeof value === type;
    case "int":
      return Number.isInteger(value);
    case "double":
      return typeof value === "number";
    case "string[]":
      return Array.isArray(value) && value.every((item) => hasType(item, "string"));
    case "int[]":
      return Array.isArray(value) && value.every((item) => hasType(item, "int"));
    case "double[]":
      return Array.isArray(value) && value.every((item) => hasType(item, "double"));
  }
}

function describeType(value: unknown): string {
  if (Array.isArray(value)) {
    return value.length === 0 ? "an empty array" : `an array of ${describeType(value[0])}`;
  }
  return typeof value === "number" && !Number.isInteger(value) ? "fractional number" : typeof value;
}

/** The catalogue as two Markdown tables, spans and attributes; the console's README holds them. */
export function renderCatalogueTable(): string {
  const spanRows = spanCatalogue.map((spec) => [
    `\`${spec.name}\``,
    spec.kind.toUpperCase(),
    spec.owner,
    spec.parent,
    spec.meaning,
  ]);
  const usedBy = new Map<AttributeKey, string[]>();
  for (const spec of spanCatalogue) {
    for (const key of [...spec.required, ...spec.optional]) {
      const mark = spec.required.includes(key) ? `\`${spec.name}\` (always)` : `\`${spec.name}\``;
      usedBy.set(key, [...(usedBy.get(key) ?? []), mark]);
    }
  }
  const attributeRows = [...usedBy].map(([key, users]) => {
    const spec = attributeCatalogue[key];
    const values = spec.values === undefined ? "" : ` One of ${spec.values.join(", ")}.`;
    return [`\`${spec.name}\``, spec.type, spec.unit, `${spec.meaning}${values}`, users.join(", ")];
  });
  return [
    table(["Span", "Kind", "Written by", "Parent", "Meaning"], spanRows),
    table(["Attribute", "Type", "Unit", "Meaning", "On"], attributeRows),
  ].join("\n\n");
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}
