import {
  Outcome,
  type Candidate,
  type Decision,
  type Observation,
  type WatchTopologyResponse,
  type WorkerState,
} from "../../services/shared/gen/kvmesh/router/v1/router.ts";

/** A candidate of a decision; terms sum to the cost. */
export function candidate(over: Partial<Candidate> = {}): Candidate {
  const terms = over.terms ?? [
    { name: "queue", ms: 2 },
    { name: "prefill", ms: 38.4 },
    { name: "decode", ms: 100 },
  ];
  return {
    workerId: "w0",
    endpoint: "127.0.0.1:8100",
    matchedBlocks: 0,
    matchedTokens: 0,
    costMs: terms.reduce((sum, term) => sum + term.ms, 0),
    predictedTtftMs: 41.2,
    openRequests: 3,
    queuedPrefillTokens: 1_024,
    reportedRunning: 2,
    reportedWaiting: 1,
    reportedAgeMs: 120,
    suspect: false,
    ...over,
    terms,
  };
}

/** What was observed of a placed request. */
export function observation(over: Partial<Observation> = {}): Observation {
  return {
    ttftMs: 43.9,
    durationMs: 812,
    servedEndpoint: "127.0.0.1:8101",
    servedAsPicked: true,
    status: 200,
    responseFlags: "",
    attempts: 1,
    cachedTokens: 480,
    cachedDifference: "none",
    closedBy: "access_log",
    responseBytes: 20_480n,
    ...over,
  };
}

/** A placed decision between two workers, w1 chosen, w2 filtered out, observed. */
export function decision(over: Partial<Decision> = {}): Decision {
  return {
    id: "router-0.1790000000000.17",
    requestId: "req-1",
    traceId: "0af7651916cd43dd8448eb211c80319c",
    admission: undefined,
    pair: undefined,
    guard: undefined,
    decidedUnixUs: 1_790_000_000_123_456n,
    decideUs: 88.4,
    pool: "default",
    model: "qwen3-demo",
    policy: "kv",
    outcome: Outcome.OUTCOME_PLACED,
    errorCode: "",
    errorMessage: "",
    promptTokens: 512,
    promptBlocks: 32,
    expectedOutputTokens: 200,
    workerId: "w1",
    endpoints: ["127.0.0.1:8101", "127.0.0.1:8100"],
    candidates: [
      candidate({
        workerId: "w1",
        endpoint: "127.0.0.1:8101",
        matchedBlocks: 30,
        matchedTokens: 480,
        terms: [
          { name: "queue", ms: 5 },
          { name: "prefill", ms: 6.1 },
          { name: "decode", ms: 100 },
        ],
        predictedTtftMs: 11.1,
      }),
      candidate(),
    ],
    filtered: [{ workerId: "w2", endpoint: "127.0.0.1:8102", reason: "draining" }],
    marginMs: 29.3,
    tieBreak: "",
    observed: observation(),
    indexAgeMs: 14,
    loadOnlyReason: "",
    traceparent: "",
    leftOut: 0,
    answer: "stream",
    ...over,
  };
}

/** A worker as a router sees it. */
export function workerState(over: Partial<WorkerState> = {}): WorkerState {
  return {
    workerId: "w0",
    endpoint: "127.0.0.1:8100",
    state: "ready",
    workerStartMs: 1_790_000_000_000n,
    engineLife: 1n,
    engine: "vllm 0.32.0",
    models: ["qwen3-demo"],
    blocks: 7_031n,
    capacityTokens: 112_500n,
    engineBlockSizeTokens: 16,
    openRequests: 3,
    running: 2,
    waiting: 1,
    kvUsageRatio: 0.42,
    reportAgeMs: 120,
    appliedSeq: 99n,
    resyncs: 0,
    hitRatio: 0.83,
    heldBy: ["router-0", "router-1"],
    role: "both",
    prefillTokensPerSecond: 41_200,
    decodeStepMs: 6.4,
    ttftErrorRatioP50: 0.08,
    ...over,
  };
}

/** Two routers, one pool, two workers. */
export function topology(over: Partial<WatchTopologyResponse> = {}): WatchTopologyResponse {
  return {
    routerInstance: "router-0",
    pools: [
      {
        id: "default",
        models: ["qwen3-demo"],
        policy: "kv",
        workers: [workerState(), workerState({ workerId: "w1", endpoint: "127.0.0.1:8101" })],
        indexBlocks: 14_062n,
      },
    ],
    routers: [
      { instance: "router-0", epoch: 17n, state: "serving", heardAgeMs: 0 },
      { instance: "router-1", epoch: 18n, state: "serving", heardAgeMs: 210 },
    ],
    relays: [],
    ...over,
  };
}
