import { z } from "zod";
import { isWorkerId } from "../shared/core/ids.ts";
import { parseEndpoint } from "../shared/core/endpoint.ts";
import { stepModels } from "../shared/core/step-model.ts";
import { logLevels } from "../shared/edge/log.ts";

const port = z.number().int().min(0).max(65_535);
const hostPort = z.string().refine((text) => parseEndpoint(text) !== undefined, {
  message: "must be host:port, such as 127.0.0.1:9003",
});
const zmqEndpoint = z
  .string()
  .regex(/^(tcp|ipc):\/\/.+$/, "must be a ZeroMQ address, such as tcp://127.0.0.1:5557");

/** Settings of the worker. Every number carries its unit; unknown keys are refused. */
export const WorkerConfig = z.strictObject({
  /** Identity, stable for ever; the default is the engine's host:port. */
  workerId: z
    .string()
    .refine(isWorkerId, { message: "must be 1 to 128 characters of [A-Za-z0-9._:-]" })
    .optional(),
  /** Pool that the engine serves in. */
  pool: z
    .string()
    .regex(/^[A-Za-z0-9._-]{1,64}$/, "must be 1 to 64 characters of [A-Za-z0-9._-]")
    .default("default"),
  logLevel: z.enum(logLevels).default("info"),
  /** Address that the metrics port binds. */
  host: z.string().min(1).default("127.0.0.1"),
  /** Metrics and health. */
  httpPort: port.default(9604),
  /** The mesh's secrets; made by `kvmesh up`. */
  keysFile: z.string().min(1).default(".kvmesh/mesh.keys"),
  engine: z
    .strictObject({
      kind: z.enum(["vllm"]).default("vllm"),
      url: z.url({ protocol: /^https?$/ }).default("http://127.0.0.1:8100"),
      /** What routers give to Envoy, ip:port; the default is the address of `url`. */
      advertise: hostPort.optional(),
      role: z.enum(["both", "prefill", "decode"]).default("both"),
      /** Folder with tokenizer.json and tokenizer_config.json; without it routers place by load only. */
      modelDir: z.string().min(1).optional(),
      /** Calibrated step times to start from. */
      stepModel: z.enum(Object.keys(stepModels) as [string, ...string[]]).optional(),
      /** KV events and their replay; the default is what the engine says at GET /kv_event_sources. */
      eventsEndpoint: zmqEndpoint.optional(),
      replayEndpoint: zmqEndpoint.optional(),
      /** Prefix of the topics to take; empty takes all. */
      eventsTopic: z.string().max(1_024).default(""),
      /** Limits of the engine; 0 takes what it tells at GET /server_info (vLLM in development mode), else unknown. */
      stepTokensMax: z.number().int().min(0).max(10_000_000).default(0),
      runningRequestsMax: z.number().int().min(0).max(1_000_000).default(0),
      /** KV transfer connector that the engine was started with, such as NixlConnector; empty: it has none. */
      kvTransfer: z
        .string()
        .regex(/^[A-Za-z0-9._-]{0,64}$/, "must be at most 64 of A-Z a-z 0-9 . _ -")
        .default(""),
      /** SGLang's bootstrap server of a prefill engine, as decode engines reach it. */
      kvBootstrap: hostPort.optional(),
      /** Bytes that a transfer moves for one token; 0: unknown, routers assume `placement.kvBytesPerTokenDefault`. */
      kvBytesPerToken: z.number().int().min(0).max(1_073_741_824).default(0),
    })
    .prefault({}),
  routers: z
    .strictObject({
      /** Control ports of routers. */
      list: z.array(hostPort).max(64).default([]),
      /** Name and port behind which routers are found; resolved again every 5 s. */
      dns: hostPort.optional(),
    })
    .prefault({ list: ["127.0.0.1:9003"] }),
  /** Tokens per block of the mesh; the default is what the first router says. */
  blockSizeTokens: z.number().int().min(1).max(65_536).optional(),
  /**
   * Time between two looks at the engine. Routers find ends whose records were lost, and engines that stand still, with
   * the next look.
   */
  scrapeIntervalMs: z.number().int().min(50).max(60_000).default(100),
  bounds: z
    .strictObject({
      /** Changed blocks that wait for one router before a snapshot replaces them. */
      pendingBlocksMax: z.number().int().min(1_024).max(16_777_216).default(262_144),
      snapshotChunkHashes: z.number().int().min(1).max(65_536).default(65_536),
      /** Engine blocks held, as a multiple of the engine's own number. */
      blocksFactor: z.number().min(1).max(16).default(2),
      /** Engine blocks held when the engine does not tell its number. */
      blocksUnknownMax: z.number().int().min(1).max(16_777_216).default(1_048_576),
      /** Event batches that wait during a replay. */
      bufferedBatchesMax: z.number().int().min(1).max(1_000_000).default(65_536),
      bufferedBytesMax: z
        .number()
        .int()
        .min(65_536)
        .max(1_073_741_824)
        .default(64 * 1024 * 1024),
    })
    .prefault({}),
});

/** Effective settings of the worker. */
export type WorkerConfig = z.infer<typeof WorkerConfig>;
