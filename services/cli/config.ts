import { z } from "zod";
import { placementPolicies } from "./core/demo-profile.ts";

const port = z.number().int().min(0).max(65_535);
const milliseconds = z.number().int().positive();

/** Ports of a mesh on one machine; 0 takes any free one. Of things that come in numbers, the first's. */
export const MeshPortsConfig = z.strictObject({
  /** Envoy's listener for anybody. */
  envoyPublic: port.default(8080),
  /** Envoy's listener for trusted callers. */
  envoyTrusted: port.default(8081),
  /** Envoy's admin interface. */
  envoyAdmin: port.default(9901),
  /** ext_proc, access log and health of router 0; router i is 10·i higher. */
  routerHot: port.default(9002),
  /** ADS, Router, Membership, Peer of router 0; router i is 10·i higher. */
  routerControl: port.default(9003),
  /** Metrics of router 0; router i is 10·i higher. */
  routerHttp: port.default(9004),
  /** HTTP/2 and gRPC of relay 0; relay i is 10·i higher, as are the next two. */
  relayH2: port.default(9100),
  /** HTTP/1.1 of relay 0. */
  relayHttp1: port.default(9101),
  /** Metrics of relay 0. */
  relayMetrics: port.default(9104),
  /** OpenAI HTTP of simulated engine 0; engine i is i higher, as are the next two. */
  engineHttp: port.default(8100),
  /** KV events of simulated engine 0. */
  engineKvEvents: port.default(8200),
  /** Replay of KV events of simulated engine 0. */
  engineKvReplay: port.default(8300),
  /** Metrics of worker 0; worker i is i higher. */
  workerHttp: port.default(8400),
  /** Query interface of the console. */
  consoleWeb: port.default(8088),
  /** OTLP over gRPC. */
  otlpGrpc: port.default(4317),
  /** OTLP over HTTP. */
  otlpHttp: port.default(4318),
});
/** See `MeshPortsConfig`. */
export type MeshPortsConfig = z.infer<typeof MeshPortsConfig>;

/** An engine that somebody else runs, and the worker to put beside it. */
export const MeshWorkerConfig = z.strictObject({
  /** Id of the worker, stable for ever. */
  id: z
    .string()
    .regex(/^[A-Za-z0-9._:-]{1,128}$/, "must be 1 to 128 characters of [A-Za-z0-9._:-]"),
  /** The engine's HTTP address. */
  engine: z.url({
    protocol: /^http$/,
    error: "must be an http:// address, such as http://127.0.0.1:8000",
  }),
  /** Where it publishes KV events; absent when it does not. */
  kvEvents: z.string().startsWith("tcp://", "must be tcp://host:port").optional(),
  /** Where it replays them. */
  kvReplay: z.string().startsWith("tcp://", "must be tcp://host:port").optional(),
  /** Keys of the `worker` section for this worker alone. */
  settings: z.record(z.string(), z.unknown()).default({}),
});
/** See `MeshWorkerConfig`. */
export type MeshWorkerConfig = z.infer<typeof MeshWorkerConfig>;

/** Key `mesh` of kvmesh.yaml: what `kvmesh up` starts. Unknown keys are refused. */
export const MeshConfig = z.strictObject({
  /** Address on which everything listens. */
  host: z.ipv4().default("127.0.0.1"),
  /** Router processes. */
  routers: z.number().int().min(1).max(8).default(2),
  /**
   * Relay processes, which carry out prefill/decode pairs, guard streams and serve gRPC. `auto`: one where a worker's role is
   * prefill or decode or `router.stream.guard` asks for it, else none.
   */
  relays: z.union([z.literal("auto"), z.number().int().min(0).max(8)]).default("auto"),
  /** Tokens per block everywhere in this mesh; engine block sizes must divide it. */
  blockSizeTokens: z.number().int().min(1).max(1024).default(32),
  /** Placement policy at the start. */
  policy: z.enum(placementPolicies).default("kv"),
  /** The mesh's secrets; made when missing. Empty: mesh.keys in the state folder. */
  keysFile: z.string().default(""),
  /** Pool that a request without a known model goes to, and the one served when no router lives. */
  defaultPool: z.string().default("default"),
  /** Names of models in the default pool, for requests that no router placed; empty: what the engines say at start. */
  models: z.array(z.string().min(1)).max(64).default([]),
  /** Whether the default pool is served unplaced when no router answers. */
  failOpen: z.boolean().default(true),
  /** Engines that somebody else runs; not used with --demo. */
  workers: z.array(MeshWorkerConfig).max(256).default([]),
  /** Whether to start the console, the receiver of traces. */
  console: z.boolean().default(true),
  /** Where traces go instead of the console, such as http://127.0.0.1:4317; empty: the console. */
  otlpEndpoint: z.string().default(""),
  ports: MeshPortsConfig.prefault({}),
  /** Longest time until a process is ready, ms. */
  readyMsMax: milliseconds.max(600_000).default(30_000),
});
/** See `MeshConfig`. */
export type MeshConfig = z.infer<typeof MeshConfig>;

const count = z.number().int().positive();

/** Key `envoy` of kvmesh.yaml: how the Envoy that `kvmesh up` starts behaves. Absent limits have Envoy-side defaults. */
export const EnvoyConfig = z.strictObject({
  /** Whether to start one; off when somebody runs their own with `kvmesh envoy print`. */
  enabled: z.boolean().default(true),
  /** Worker threads. */
  concurrency: z.number().int().min(1).max(64).default(1),
  /** How bodies are shown to routers; only `buffered` can fail open. */
  bodyMode: z.enum(["buffered", "buffered_partial", "duplex"]).default("buffered"),
  /** Paths for public callers beside the inference paths of the OpenAI API, such as /v1/messages or /v1/files/*. */
  publicPaths: z.array(z.string()).max(64).default([]),
  routerChoice: z.enum(["least_request", "round_robin"]).default("least_request"),
  /** Tries after the first one. */
  retriesMax: z.number().int().min(0).max(5).default(2),
  /** File for one JSON line per request; empty writes none. */
  accessLogPath: z.string().default(""),
  limits: z
    .strictObject({
      bodyBytesMax: count,
      headerKibMax: count,
      headersMax: count,
      connectionsMax: count,
      streamsPerConnectionMax: count,
      heapBytesMax: count,
      requestsPerClusterMax: count,
      guardBodyBytesMax: count,
    })
    .partial()
    .default({}),
  timeouts: z
    .strictObject({
      requestHeadersMs: milliseconds,
      requestMs: milliseconds,
      connectionIdleMs: milliseconds,
      streamIdleMs: milliseconds,
      routerMessageMs: milliseconds,
      routerMessageMsMax: milliseconds,
    })
    .partial()
    .default({}),
});
/** See `EnvoyConfig`. */
export type EnvoyConfig = z.infer<typeof EnvoyConfig>;
