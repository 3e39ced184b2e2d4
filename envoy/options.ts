import { isPublicPath } from "./public-paths.ts";

/** Where a process of ours listens: an IP address (or, for routers, also a DNS name with many addresses) and a port. */
export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** How Envoy shows request bodies to a router; `buffered` is the one that can fail open. */
export type BodyMode = "buffered" | "buffered_partial" | "duplex";

/** The pool of requests that no router has placed. */
export interface DefaultPoolOptions {
  /** Pool id; its cluster is `pool-<id>`. */
  readonly id: string;
  /** Names of models and adapters that its engines serve. Empty: no request is served unplaced. */
  readonly models: readonly string[];
  /** Whether requests that no router placed are served by this pool, for its own models only. */
  readonly failOpen: boolean;
}

/** Limits on what clients can make Envoy hold. */
export interface EnvoyLimits {
  /** Largest request body, bytes; above it the answer is 413. Also the buffer that retries need. */
  readonly bodyBytesMax: number;
  /** All request headers together, KiB; above it 431. */
  readonly headerKibMax: number;
  /** Number of request headers; above it 431. */
  readonly headersMax: number;
  /** Client connections of the whole Envoy; more are closed at once. */
  readonly connectionsMax: number;
  /** Concurrent requests on one HTTP/2 connection. */
  readonly streamsPerConnectionMax: number;
  /** Heap at which Envoy sheds new requests with 503, bytes. */
  readonly heapBytesMax: number;
  /** Requests in progress per cluster. */
  readonly requestsPerClusterMax: number;
  /** Largest body whose model the guard reads when no router answered, bytes; larger ones get 503. */
  readonly guardBodyBytesMax: number;
}

/** Deadlines, milliseconds. */
export interface EnvoyTimeouts {
  /** Client: from the first byte of a request to the end of its headers. */
  readonly requestHeadersMs: number;
  /** Client: from the first byte of a request to the end of its body. */
  readonly requestMs: number;
  /** Client: a connection without requests. */
  readonly connectionIdleMs: number;
  /** A request on which nothing moves: the longest queue and prefill must fit in. */
  readonly streamIdleMs: number;
  /**
   * Router: its answer to one message, in the buffered modes; the way there of the largest body must fit in. A frozen
   * router costs a request this much.
   */
  readonly routerMessageMs: number;
  /** Router: longest extension it may ask for while a request waits; below `streamIdleMs`. */
  readonly routerMessageMsMax: number;
}

/** Everything that the generated configuration depends on. */
export interface EnvoyOptions {
  /** Node id, shown to routers; unique per Envoy. */
  readonly nodeId: string;
  /** Listener for anybody. Port 0 takes a free one. */
  readonly public: HostPort;
  /** Listener for trusted callers; must be reachable by them only (loopback, or behind mTLS). */
  readonly trusted: HostPort;
  /** Admin interface; loopback. */
  readonly admin: HostPort;
  /** Hot ports of the routers: ext_proc, access log, health. */
  readonly routers: readonly HostPort[];
  /** Control ports of the routers: ADS. */
  readonly controls: readonly HostPort[];
  /** OTLP over gRPC; `undefined` switches tracing off. */
  readonly otlp: HostPort | undefined;
  readonly defaultPool: DefaultPoolOptions;
  /**
   * Paths that public callers may use beside those of `inferencePaths`; `/x/*` stands for all below `/x/`. Trusted callers
   * may use every path of an engine.
   */
  readonly publicPaths: readonly string[];
  readonly bodyMode: BodyMode;
  /** How a router process is chosen for a request. */
  readonly routerChoice: "least_request" | "round_robin";
  /** Tries after the first one, in body mode `buffered`; the others try once. */
  readonly retriesMax: number;
  /** File for one JSON line per request; `undefined` writes none. `/dev/stdout` works. */
  readonly accessLogPath: string | undefined;
  readonly limits: EnvoyLimits;
  readonly timeouts: EnvoyTimeouts;
}

/** Limits for one machine; see `EnvoyLimits`. */
export const defaultLimits: EnvoyLimits = {
  bodyBytesMax: 64 * 1024 * 1024,
  headerKibMax: 64,
  headersMax: 100,
  connectionsMax: 10_000,
  streamsPerConnectionMax: 256,
  heapBytesMax: 2 * 1024 * 1024 * 1024,
  requestsPerClusterMax: 100_000,
  guardBodyBytesMax: 4 * 1024 * 1024,
};

/** Deadlines for one machine; see `EnvoyTimeouts`. */
export const defaultTimeouts: EnvoyTimeouts = {
  requestHeadersMs: 10_000,
  requestMs: 120_000,
  connectionIdleMs: 300_000,
  streamIdleMs: 600_000,
  routerMessageMs: 3_000,
  routerMessageMsMax: 300_000,
};

/** Options of the one-machine mesh: two routers and a console on the default ports of loopback. */
export const defaultOptions: EnvoyOptions = {
  nodeId: "gateway-1",
  public: { host: "127.0.0.1", port: 8080 },
  trusted: { host: "127.0.0.1", port: 8081 },
  admin: { host: "127.0.0.1", port: 9901 },
  routers: [
    { host: "127.0.0.1", port: 9002 },
    { host: "127.0.0.1", port: 9012 },
  ],
  controls: [
    { host: "127.0.0.1", port: 9003 },
    { host: "127.0.0.1", port: 9013 },
  ],
  otlp: { host: "127.0.0.1", port: 4317 },
  defaultPool: { id: "default", models: [], failOpen: true },
  publicPaths: [],
  bodyMode: "buffered",
  routerChoice: "least_request",
  retriesMax: 2,
  accessLogPath: undefined,
  limits: defaultLimits,
  timeouts: defaultTimeouts,
};

const poolIdPattern = /^[A-Za-z0-9._-]{1,64}$/;

/** Every reason why these options make no working Envoy, in plain words; empty when they do. */
export function findOptionProblems(options: EnvoyOptions): string[] {
  const problems: string[] = [];
  if (options.routers.length === 0) problems.push("routers: at least one hot port is needed");
  if (options.controls.length === 0) problems.push("controls: at least one control port is needed");
  if (!poolIdPattern.test(options.defaultPool.id)) {
    problems.push(`defaultPool.id: ${options.defaultPool.id} is not 1 to 64 of [A-Za-z0-9._-]`);
  }
  const { timeouts, limits } = options;
  if (timeouts.routerMessageMs > timeouts.routerMessageMsMax) {
    problems.push("timeouts.routerMessageMs: must not exceed timeouts.routerMessageMsMax");
  }
  if (timeouts.routerMessageMsMax >= timeouts.streamIdleMs) {
    problems.push(
      "timeouts.routerMessageMsMax: must be below timeouts.streamIdleMs, which would end the wait first",
    );
  }
  if (limits.guardBodyBytesMax > limits.bodyBytesMax) {
    problems.push("limits.guardBodyBytesMax: must not exceed limits.bodyBytesMax");
  }
  for (const path of options.publicPaths) {
    if (isPublicPath(path)) continue;
    problems.push(
      `publicPaths: ${JSON.stringify(path)} is no path such as /v1/messages, or /v1/files/* for all below`,
    );
  }
  if (options.retriesMax < 0 || options.retriesMax > 5) {
    problems.push(`retriesMax: ${options.retriesMax.toString()} is outside 0 to 5`);
  }
  return problems;
}
