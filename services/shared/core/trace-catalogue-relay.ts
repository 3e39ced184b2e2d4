// The relay's part of the trace catalogue: attributes and spans of requests that pass a relay, and the hops of KV that
// engines write below them. `trace-catalogue.ts` puts the parts together and checks their form.

import { legOutcomes } from "./leg-outcome.ts";

/** Attributes that only spans of relays, and hops of KV, have. */
export const relayAttributeSpecs = {
  // kvmesh.request
  requestMode: {
    name: "kvmesh.request.mode",
    type: "string",
    unit: "",
    meaning: "Whether it ran whole on one engine or as a pair, as it was placed last.",
    values: ["whole", "pair"],
  },
  requestAttempt: {
    name: "kvmesh.request.attempt",
    type: "int",
    unit: "",
    meaning: "Which of the proxy's tries this is, from 1.",
  },
  requestOutcome: {
    name: "kvmesh.request.outcome",
    type: "string",
    unit: "",
    meaning: "How it ended.",
    values: [
      "done",
      "client_cancel",
      "engine_lost",
      "engine_error",
      "deadline_exceeded",
      "engine_frozen",
      "refused",
      "resume_lost",
    ],
  },
  requestPlacements: {
    name: "kvmesh.request.placements",
    type: "int",
    unit: "",
    meaning: "Placements that it was run on, the first one included.",
  },
  guardState: {
    name: "kvmesh.guard.state",
    type: "string",
    unit: "",
    meaning: "Whether the stream was guarded at its end; absent for answers that are no streams.",
    values: ["on", "off"],
  },
  guardReason: {
    name: "kvmesh.guard.reason",
    type: "string",
    unit: "",
    meaning: "Why it was not, as in x-kvmesh-guard; absent for guarded streams.",
  },
  traceKeptFor: {
    name: "kvmesh.trace.kept_for",
    type: "string",
    unit: "",
    meaning: "Why spans of a request that was not sampled were written after all.",
    values: ["failed", "migrated", "slow", "badly_predicted", "shed", "operator"],
  },

  // Where the time to the first byte went, as the relay saw it; the parts add up to kvmesh.stream.ttft_ms.
  ttftRelayMs: {
    name: "kvmesh.ttft.relay_ms",
    type: "double",
    unit: "ms",
    meaning: "From arrival to the first leg, and between legs.",
  },
  ttftPrefillMs: {
    name: "kvmesh.ttft.prefill_ms",
    type: "double",
    unit: "ms",
    meaning: "The prefill leg; 0 for requests that ran whole.",
  },
  ttftTransferMs: {
    name: "kvmesh.ttft.transfer_ms",
    type: "double",
    unit: "ms",
    meaning: "From the end of prefill to decode's first step: the pull, and waiting for it.",
  },
  ttftDecodeMs: {
    name: "kvmesh.ttft.decode_ms",
    type: "double",
    unit: "ms",
    meaning:
      "Decode's first step; of requests that ran whole the engine's whole time to its first byte.",
  },
  ttftRetryMs: {
    name: "kvmesh.ttft.retry_ms",
    type: "double",
    unit: "ms",
    meaning: "Legs that failed before the first byte, and placing the request again.",
  },

  // kvmesh.prefill and kvmesh.decode
  legRole: {
    name: "kvmesh.leg.role",
    type: "string",
    unit: "",
    meaning: "What the leg was to compute.",
    values: ["whole", "prefill", "decode"],
  },
  legAttempt: {
    name: "kvmesh.leg.attempt",
    type: "int",
    unit: "",
    meaning:
      "Which try of this part of the request it is, from 1; further ones link to the one before.",
  },
  legOutcome: {
    name: "kvmesh.leg.outcome",
    type: "string",
    unit: "",
    meaning: "What became of it.",
    values: legOutcomes,
  },
  legLocalPrefill: {
    name: "kvmesh.leg.local_prefill",
    type: "string",
    unit: "",
    meaning: "Why decode computed the prompt itself; absent where it did not.",
    values: [
      "prefill_failed",
      "transfer_failed",
      "handoff_full",
      "choices",
      "batch",
      "prompt_logprobs",
    ],
  },
  legFirstByteMs: {
    name: "kvmesh.leg.first_byte_ms",
    type: "double",
    unit: "ms",
    meaning: "From its start to the first byte of its answer; absent when none came.",
  },
  engineName: {
    name: "kvmesh.engine.name",
    type: "string",
    unit: "",
    meaning: "Kind of engine, whose protocol the leg speaks.",
    values: ["vllm", "sglang", "tensorrt-llm"],
  },
  legDpRank: {
    name: "kvmesh.leg.dp_rank",
    type: "int",
    unit: "",
    meaning: "Data-parallel rank that it was pinned to; absent where there is only one.",
  },
  resumeTokenOffset: {
    name: "kvmesh.resume.token_offset",
    type: "int",
    unit: "{token}",
    meaning: "Tokens that the client had when this engine, or this relay, went on with the stream.",
  },
  genAiUsageOutputTokens: {
    name: "gen_ai.usage.output_tokens",
    type: "int",
    unit: "{token}",
    meaning: "Tokens generated, as far as the relay knows them.",
  },
  predictedPrefillMs: {
    name: "kvmesh.predicted.prefill_ms",
    type: "double",
    unit: "ms",
    meaning: "Time that the decision expected the prompt to take.",
  },
  observedPrefillMs: {
    name: "kvmesh.observed.prefill_ms",
    type: "double",
    unit: "ms",
    meaning: "Time that the prefill leg took.",
  },
  differencePrefillMs: {
    name: "kvmesh.difference.prefill_ms",
    type: "double",
    unit: "ms",
    meaning: "Observed minus predicted time of prefill.",
  },
  predictedItlMs: {
    name: "kvmesh.predicted.itl_ms",
    type: "double",
    unit: "ms",
    meaning: "Gap between tokens that the decision expected.",
  },
  observedItlMs: {
    name: "kvmesh.observed.itl_ms",
    type: "double",
    unit: "ms",
    meaning:
      "Mean gap between tokens, or between pieces of the answer where tokens are not counted.",
  },

  // kvmesh.kv.transfer and kvmesh.kv.hop
  observedTransferMs: {
    name: "kvmesh.observed.transfer_ms",
    type: "double",
    unit: "ms",
    meaning:
      "From the end of prefill to decode's first token, less one expected gap between tokens: what of the transfer prefill did not hide.",
  },
  differenceTransferMs: {
    name: "kvmesh.difference.transfer_ms",
    type: "double",
    unit: "ms",
    meaning: "Observed minus predicted time of the transfer.",
  },
  kvBytes: {
    name: "kvmesh.kv.bytes",
    type: "int",
    unit: "By",
    meaning:
      "Bytes of KV: of a transfer as the decision reckoned them, of a hop as they were moved.",
  },
  kvBlocks: {
    name: "kvmesh.kv.blocks",
    type: "int",
    unit: "{block}",
    meaning: "Blocks: of a transfer those that prefill offered, of a hop those that arrived.",
  },
  kvAskedBlocks: {
    name: "kvmesh.kv.asked_blocks",
    type: "int",
    unit: "{block}",
    meaning: "Blocks that the engine asked for.",
  },
  kvDamagedBlocks: {
    name: "kvmesh.kv.damaged_blocks",
    type: "int",
    unit: "{block}",
    meaning: "Blocks whose content was not what it should be.",
  },
  kvSource: {
    name: "kvmesh.kv.source",
    type: "string",
    unit: "",
    meaning: "Where the KV came from: worker id, or host:port on a hop.",
  },
  kvDestination: {
    name: "kvmesh.kv.destination",
    type: "string",
    unit: "",
    meaning: "Where it went.",
  },
  kvSourceTier: {
    name: "kvmesh.kv.source_tier",
    type: "string",
    unit: "",
    meaning: "Memory that it lay in.",
    values: ["device", "host", "disk", "remote"],
  },
  kvDestinationTier: {
    name: "kvmesh.kv.destination_tier",
    type: "string",
    unit: "",
    meaning: "Memory that it was put into.",
    values: ["device", "host", "disk", "remote"],
  },
  kvTransport: {
    name: "kvmesh.kv.transport",
    type: "string",
    unit: "",
    meaning: "How it travelled, such as nixl or tcp; absent where the engine does not say.",
  },
  kvGbps: {
    name: "kvmesh.kv.gbps",
    type: "double",
    unit: "GB/s",
    meaning: "Bytes over time.",
  },
  kvWaitMs: {
    name: "kvmesh.kv.wait_ms",
    type: "double",
    unit: "ms",
    meaning: "Waiting for the link before the first byte.",
  },
  kvOverlapRatio: {
    name: "kvmesh.kv.overlap_ratio",
    type: "double",
    unit: "",
    meaning:
      "Share of it that prefill hid: 0 where decode pulls after prefill, 1 where nothing was left to wait for.",
  },
  kvOutcome: {
    name: "kvmesh.kv.outcome",
    type: "string",
    unit: "",
    meaning: "What became of it; on a hop also the engine's own word for a failure.",
  },

  // kvmesh.stream
  streamTtftMs: {
    name: "kvmesh.stream.ttft_ms",
    type: "double",
    unit: "ms",
    meaning: "From the request's arrival at the relay to the first byte of its answer.",
  },
  streamBytes: {
    name: "kvmesh.stream.bytes",
    type: "int",
    unit: "By",
    meaning: "Bytes of the answer handed on to the client.",
  },
  streamTokens: {
    name: "kvmesh.stream.tokens",
    type: "int",
    unit: "{token}",
    meaning: "Tokens that the client got; absent where they are not counted.",
  },
  streamItlP50Ms: {
    name: "kvmesh.stream.itl_p50_ms",
    type: "double",
    unit: "ms",
    meaning: "Median gap between pieces of the answer, to a factor of 1.2.",
  },
  streamItlP99Ms: {
    name: "kvmesh.stream.itl_p99_ms",
    type: "double",
    unit: "ms",
    meaning: "99th percentile of these gaps, to a factor of 1.2.",
  },
  streamStalls: {
    name: "kvmesh.stream.stalls",
    type: "int",
    unit: "",
    meaning: "Gaps much longer than the others; the first ones are events.",
  },
  streamStallEngineMs: {
    name: "kvmesh.stream.stall_engine_ms",
    type: "double",
    unit: "ms",
    meaning: "Sum of the stalls in which the engine sent nothing.",
  },
  streamStallClientMs: {
    name: "kvmesh.stream.stall_client_ms",
    type: "double",
    unit: "ms",
    meaning: "Sum of the stalls in which the client took nothing.",
  },
  streamMigrations: {
    name: "kvmesh.stream.migrations",
    type: "int",
    unit: "",
    meaning: "Times that it went on at another engine.",
  },
} as const;

/** Names of the relay's spans, and of the engines' hops below them. */
export const relaySpanNames = {
  request: "kvmesh.request",
  prefill: "kvmesh.prefill",
  kvTransfer: "kvmesh.kv.transfer",
  kvHop: "kvmesh.kv.hop",
  decode: "kvmesh.decode",
  stream: "kvmesh.stream",
} as const;

/** Events of `kvmesh.stream`. */
export const streamEvents = {
  firstToken: "first_token",
  stall: "stall",
  migrated: "migrated",
  clientCancel: "client_cancel",
  usage: "usage",
} as const;

/** Attributes of these events. */
export const streamEventAttributes = {
  stallMs: "kvmesh.stall.ms",
  /** `engine` or `client`. */
  stallSide: "kvmesh.stall.side",
  gapMs: "kvmesh.migration.gap_ms",
  /** Outcome of the leg that was left. */
  cause: "kvmesh.migration.cause",
} as const;

const legAttributes = [
  "errorType",
  "serverAddress",
  "serverPort",
  "httpResponseStatusCode",
  "predictedCachedTokens",
  "observedCachedTokens",
  "differenceCachedTokens",
  "differenceCause",
  "legFirstByteMs",
  "legDpRank",
] as const;

/** The spans of a request that passes a relay, in the order in which a reader meets them. */
export const relaySpanSpecs = [
  {
    name: relaySpanNames.request,
    kind: "server",
    owner: "relay",
    parent: "router <cluster> egress",
    meaning:
      "A request on its way through a relay, from arrival to its end. Links to kvmesh.route, and of a resumed stream to the kvmesh.request that it goes on with.",
    required: [
      "decisionId",
      "requestId",
      "requestMode",
      "requestAttempt",
      "requestOutcome",
      "requestPlacements",
    ],
    optional: [
      "errorType",
      "genAiOperationName",
      "genAiRequestModel",
      "poolId",
      "tenantClass",
      "guardState",
      "guardReason",
      "resumeTokenOffset",
      "streamMigrations",
      "predictedTtftMs",
      "ttftRelayMs",
      "ttftPrefillMs",
      "ttftTransferMs",
      "ttftDecodeMs",
      "ttftRetryMs",
      "parentUnsampled",
      "traceKeptFor",
      "traceSpansExpected",
    ],
  },
  {
    name: relaySpanNames.prefill,
    kind: "client",
    owner: "relay",
    parent: relaySpanNames.request,
    meaning: "The leg that computes the prompt for another engine.",
    required: ["workerId", "engineName", "legRole", "legAttempt", "legOutcome"],
    optional: [...legAttributes, "predictedPrefillMs", "observedPrefillMs", "differencePrefillMs"],
  },
  {
    name: relaySpanNames.kvTransfer,
    kind: "client",
    owner: "relay",
    parent: relaySpanNames.request,
    meaning:
      "KV on its way from prefill to decode, from the end of prefill to decode's first step; failed where the prompt had to be computed again.",
    required: ["kvSource", "kvDestination", "kvOutcome"],
    optional: [
      "errorType",
      "kvBytes",
      "kvBlocks",
      "kvSourceTier",
      "kvDestinationTier",
      "kvTransport",
      "kvGbps",
      "kvOverlapRatio",
      "predictedTransferMs",
      "predictedTransferBytes",
      "observedTransferMs",
      "differenceTransferMs",
      "differenceCause",
    ],
  },
  {
    name: relaySpanNames.kvHop,
    kind: "internal",
    owner: "engine",
    parent: relaySpanNames.decode,
    meaning: "One pull of KV as the engine that decodes made it.",
    required: ["kvBytes", "kvBlocks", "kvOutcome"],
    optional: [
      "kvAskedBlocks",
      "kvDamagedBlocks",
      "kvSource",
      "kvSourceTier",
      "kvDestinationTier",
      "kvTransport",
      "kvGbps",
      "kvWaitMs",
    ],
  },
  {
    name: relaySpanNames.decode,
    kind: "client",
    owner: "relay",
    parent: relaySpanNames.request,
    meaning:
      "The leg whose answer the client gets; one for each engine that worked on it, each linked to the one before.",
    required: ["workerId", "engineName", "legRole", "legAttempt", "legOutcome"],
    optional: [
      ...legAttributes,
      "genAiUsageInputTokens",
      "genAiUsageOutputTokens",
      "legLocalPrefill",
      "resumeTokenOffset",
      "predictedItlMs",
      "observedItlMs",
    ],
  },
  {
    name: relaySpanNames.stream,
    kind: "internal",
    owner: "relay",
    parent: relaySpanNames.request,
    meaning:
      "The answer on its way to the client, from its first byte. Events: first_token, stall, migrated, client_cancel, usage.",
    required: ["streamTtftMs", "streamBytes", "streamMigrations"],
    optional: [
      "errorType",
      "predictedTtftMs",
      "differenceTtftMs",
      "differenceCause",
      "streamTokens",
      "streamItlP50Ms",
      "streamItlP99Ms",
      "streamStalls",
      "streamStallEngineMs",
      "streamStallClientMs",
    ],
  },
] as const;
