import { z } from "zod";
import { stepModels } from "../shared/core/step-model.ts";
import { logLevels } from "../shared/edge/log.ts";

const port = z.number().int().min(0).max(65_535);
const coefficient = z.number().min(0);

/** Step time model given by hand, ms; the form is in `services/shared/core/step-model.ts`. */
const StepModelConfig = z.strictObject({
  c0: coefficient,
  c1: coefficient,
  c2: coefficient,
  d0: coefficient,
  d1: coefficient,
  d2: coefficient,
});

const stepModelNames = Object.keys(stepModels) as [string, ...string[]];

/** Settings of one simulated engine. Defaults imitate `vllm serve` 0.32 on one H100 with an 8B model. */
export const EngineConfig = z.strictObject({
  instance: z.string().min(1).max(128).default("engine"),
  logLevel: z.enum(logLevels).default("info"),
  host: z.string().default("127.0.0.1"),
  /** HTTP; 0 takes a free port. */
  port: port.default(8100),
  /** Longest request body, bytes. */
  bodyBytesMax: z
    .number()
    .int()
    .min(1_024)
    .default(64 * 1024 * 1024),
  /** Name in `/v1/models` and metrics. */
  model: z.string().min(1).default("qwen3-demo"),
  /** Further names that requests may use. */
  servedModelNames: z.array(z.string().min(1)).max(16).default([]),
  /** Folder with `tokenizer.json` and `tokenizer_config.json`; empty: the Qwen3 vocabulary of the package. */
  tokenizerDir: z.string().default(""),
  /** Folder for tokenizer tables built before, so that a restart is quick; empty keeps none. */
  cacheFolder: z.string().default(""),
  /** Calibrated fit by name, or six coefficients. */
  stepModel: z
    .union([z.enum(stepModelNames), StepModelConfig])
    .default("h100_sxm/llama-3.1-8b/tp1"),
  /** Model time runs this much faster than real time. */
  speedup: z.number().positive().max(10_000).default(1),
  /** KV capacity, tokens; one block more is kept as the null block. */
  kvTokens: z.number().int().min(64).default(457_000),
  blockSizeTokens: z.number().int().min(1).max(1_024).default(16),
  /** Longest prompt + answer, tokens; clipped to the KV capacity. */
  contextTokensMax: z.number().int().min(2).default(131_072),
  /** Token budget of one step (`--max-num-batched-tokens`). */
  stepTokensMax: z.number().int().min(1).default(8_192),
  /** Sequences that run at once (`--max-num-seqs`). */
  runningMax: z.number().int().min(1).default(1_024),
  prefixCaching: z.boolean().default(true),
  asyncScheduling: z.boolean().default(true),
  /** Bound of running + waiting requests (`--max-num-queued-reqs`); more get 503. */
  queuedRequestsMax: z.number().int().min(1).default(4_096),
  /** Mean length of answers that end by themselves, tokens; lengths are geometric. */
  answerTokensMean: z.number().min(1).default(200),
  /** Sequences that one request may ask for (prompts × n). */
  choicesMax: z.number().int().min(1).max(1_024).default(128),
  events: z
    .strictObject({
      enabled: z.boolean().default(true),
      /** ZeroMQ PUB; 0 takes a free port. */
      port: port.default(8200),
      /** ZeroMQ ROUTER for replay; 0 takes a free port. */
      replayPort: port.default(8300),
      /** First frame of every message; empty: `kv@<host>:<port>@<model>`. */
      topic: z.string().default(""),
      /** `map` since vLLM 0.24, `array` before. */
      format: z.enum(["map", "array"]).default("map"),
      /** Frames of a replay answer behind the identity: 4 with the topic (since 2026), 3 without. */
      replayTopic: z.boolean().default(true),
      /** Batches kept for replay. */
      bufferSteps: z.number().int().min(1).default(10_000),
      /** Messages that ZeroMQ holds for one slow subscriber before it drops. */
      hwm: z.number().int().min(1).default(100_000),
      /** Batches waiting for the socket; more are dropped, which subscribers see as a gap. */
      queueMax: z.number().int().min(1).default(100_000),
    })
    .prefault({}),
  /** `POST /reset_prefix_cache` and `GET /server_info` (`VLLM_SERVER_DEV_MODE`). */
  devMode: z.boolean().default(true),
  /** `POST /sim/faults` and `/sim/oracle`; not part of vLLM. */
  faultsEnabled: z.boolean().default(true),
  /** Response header `x-request-id` (`--enable-request-id-headers`). */
  requestIdHeaders: z.boolean().default(true),
  /**
   * SIGTERM: 0 aborts what runs and leaves open streams hanging, as vLLM does by default
   * (`--shutdown-timeout`); otherwise running requests may take this long to end, ms.
   */
  shutdownTimeoutMs: z.number().int().min(0).default(0),
  /** With `shutdownTimeoutMs` 0: longest wait for clients to close hanging streams, ms. */
  hangMsMax: z.number().int().min(0).default(30_000),
  /** OTLP/gRPC endpoint for spans, e.g. `http://127.0.0.1:4317`; empty: no spans. */
  otlpEndpoint: z.string().default(""),
});
/** Settings of one simulated engine, parsed. */
export type EngineConfig = z.infer<typeof EngineConfig>;
