import { z } from "zod";
import { AdmissionConfig } from "./admission-config.ts";
import { StreamConfig } from "./stream-config.ts";
import { parseCidr } from "../shared/core/cidr.ts";
import { parseEndpoint } from "../shared/core/endpoint.ts";
import { logLevels } from "../shared/edge/log.ts";
import { hotServerKinds } from "./edge/hot-server-kinds.ts";
import { preferenceNames } from "./core/placement/estimate.ts";
import { disaggregationModes } from "./core/placement/pairs/pair-placer.ts";
import { policyNames } from "./core/placement/policy.ts";

const port = z.number().int().min(0).max(65_535);
const endpoint = z.string().refine((text) => parseEndpoint(text) !== undefined, "must be ip:port");
const cidr = z
  .string()
  .refine((text) => parseCidr(text) !== undefined, "must be an address range such as 10.0.0.0/8");
const loopback = ["127.0.0.0/8", "::1/128"];

/** Settings of the router. Every number carries its unit; unknown keys are refused. */
export const RouterConfig = z.strictObject({
  /** Name of this replica; appears in decision ids. */
  instance: z
    .string()
    .regex(/^[a-z0-9-]{1,32}$/, "must be 1 to 32 of a-z, 0-9 and -")
    .default("router-1"),
  /** Address to listen on. */
  host: z.string().default("127.0.0.1"),
  /** ext_proc, access log, health; 0 picks a free port, as for the others. */
  hotPort: port.default(9002),
  /** Discovery, Router, Membership, Peer, health, reflection. */
  controlPort: port.default(9003),
  /** Metrics and health over HTTP. */
  httpPort: port.default(9004),
  /** Processes of this router, one per core that it may use; process i has ports 10 × i higher. */
  processes: z.number().int().min(1).max(64).default(1),
  /** Secrets of the mesh. */
  keysFile: z.string().default(".kvmesh/mesh.keys"),
  /** Tokens per block in the whole mesh. */
  blockSizeTokens: z.number().int().min(1).max(4_096).default(32),
  /** How workers are ranked. */
  policy: z.enum(policyNames).default("kv"),
  /** Control addresses of the other routers. */
  peers: z.array(endpoint).max(64).default([]),
  pools: z
    .strictObject({
      /** Pool that requests without a model go to, and the only one served when no router lives. */
      default: z
        .string()
        .regex(/^[A-Za-z0-9._-]{1,64}$/)
        .default("default"),
      /** Pools known before any worker joins. */
      known: z
        .array(z.string().regex(/^[A-Za-z0-9._-]{1,64}$/))
        .max(256)
        .default([]),
    })
    .prefault({}),
  workers: z
    .strictObject({
      /** Where engines may be. */
      allowedCidrs: z.array(cidr).min(1).default(loopback),
      /** Most workers at once. */
      max: z.number().int().min(1).max(4_096).default(1_024),
      /** How long a worker stays after its stream is lost, ms. */
      graceMs: z.number().int().min(100).max(600_000).default(5_000),
    })
    .prefault({}),
  relays: z
    .strictObject({
      /** Where relays may be. */
      allowedCidrs: z.array(cidr).min(1).default(loopback),
    })
    .prefault({}),
  callers: z
    .strictObject({
      /** Who may use ext_proc and the access log. */
      proxy: z.array(cidr).default(loopback),
      /** Who may use Router (Place, Explain, watches, policies). */
      router: z.array(cidr).default(loopback),
      /** Who may use Membership. */
      membership: z.array(cidr).default(loopback),
      /** Who may use Relays. */
      relays: z.array(cidr).default(loopback),
      /** Who may use Peer. */
      peer: z.array(cidr).default(loopback),
      /** Who may use discovery. */
      discovery: z.array(cidr).default(loopback),
    })
    .prefault({}),
  extProc: z
    .strictObject({
      /** Server of the hot port: lean (our HTTP/2, messages read in place) or grpc-js. */
      server: z.enum(hotServerKinds).default("lean"),
    })
    .prefault({}),
  limits: z
    .strictObject({
      /** Largest body of one request, bytes. */
      bodyBytesMax: z
        .number()
        .int()
        .min(1_024)
        .default(64 * 1024 * 1024),
      /** Bodies held at once, bytes; more are refused with 503. */
      bodyMemoryBytesMax: z
        .number()
        .int()
        .min(1_048_576)
        .default(256 * 1024 * 1024),
      /** Open reservations. */
      reservationsMax: z.number().int().min(1).default(100_000),
      /** Decisions kept for explain. */
      decisionsMax: z.number().int().min(1).default(10_000),
      /** Blocks in the index. */
      blocksMax: z
        .number()
        .int()
        .min(1_024)
        .max(2 ** 27)
        .default(16_777_216),
      /** Memory for tokens and hashes of prompts seen before, bytes. */
      tokenCacheBytesMax: z
        .number()
        .int()
        .min(0)
        .max(2 ** 36)
        .default(64 * 1024 * 1024),
    })
    .prefault({}),
  placement: z
    .strictObject({
      /** Answer length assumed before any answer was seen, tokens. */
      outputTokensDefault: z.number().int().min(1).default(256),
      /** What the cost favours where prompts are long and engines full: time per token as well, or first tokens. */
      preference: z.enum(preferenceNames).default("balanced"),
      /** What a worker costs that did not serve the request's conversation last, ms; 0 for no such preference. */
      affinityMs: z.number().min(0).max(60_000).default(5),
      /** Conversations whose worker is remembered. */
      sessionsMax: z.number().int().min(0).max(10_000_000).default(65_536),
      /** Fallback endpoints named beside the first choice. */
      fallbacksMax: z.number().int().min(0).max(16).default(3),
      /** Prefill and decode on two workers: when it costs less, never, or whenever a pair can be had. */
      disaggregation: z.enum(disaggregationModes).default("auto"),
      /** Added to the cost of pairs when compared with running whole, ms; negative favours pairs. */
      pairBiasMs: z.number().min(-3_600_000).max(3_600_000).default(0),
      /** Bytes of KV moved for one token where an engine does not tell; the default is Llama-3.1-8B in BF16. */
      kvBytesPerTokenDefault: z.number().int().min(1).max(1_073_741_824).default(131_072),
      /** Links between engines before a transfer was seen, in one host and between hosts: latency, ms, and bytes a second. */
      links: z
        .strictObject({
          sameHostMs: z.number().min(0).max(60_000).default(2),
          sameHostBytesPerS: z.number().min(1).default(4_000_000_000),
          acrossHostsMs: z.number().min(0).max(60_000).default(4),
          acrossHostsBytesPerS: z.number().min(1).default(1_500_000_000),
        })
        .prefault({}),
      /** In full duplex name the first choice alone unless set (gateways may read one address only). */
      duplexFallbacks: z.boolean().default(false),
    })
    .prefault({}),
  /** Which streams go on when their engine dies. */
  stream: StreamConfig,
  /** How requests wait for room, and which are refused. */
  admission: AdmissionConfig,
  /** How long to wait for the other routers before serving without them, ms. */
  peerWaitMs: z.number().int().min(0).max(60_000).default(3_000),
  /** Folder for tokenizer tables built before, so that a restart is quick; empty keeps none. */
  cacheFolder: z.string().default(".kvmesh/cache"),
  /** OTLP/gRPC endpoint for spans, such as http://127.0.0.1:4317; empty switches tracing off. */
  otlpEndpoint: z.string().default(""),
  /** Longest drain after SIGTERM, ms. */
  drainMsMax: z.number().int().min(0).max(600_000).default(5_000),
  /** How long requests are still answered while health says NOT_SERVING, ms. */
  drainServeMs: z.number().int().min(0).max(60_000).default(2_500),
  logLevel: z.enum(logLevels).default("info"),
});
export type RouterConfig = z.infer<typeof RouterConfig>;
