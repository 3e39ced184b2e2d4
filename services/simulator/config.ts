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

/** Shape of a link. */
const LinkConfig = z.strictObject({
  bytesPerS: z.number().min(0).default(0),
  latencyMs: z.number().min(0).max(10_000).default(0),
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
  /** Engine whose protocol for prefill/decode pairs is spoken; the rest of the surface is vLLM's. */
  flavour: z.enum(["vllm", "sglang", "tensorrt-llm"]).default("vllm"),
  /** Side in disaggregated serving; vLLM and TensorRT-LLM serve any leg whatever it says, SGLang its own alone. */
  role: z.enum(["prefill", "decode", "both"]).default("both"),
  /** KV transfer between engines. */
  kv: z
    .strictObject({
      /** Whether there is a KV connector; without one all transfer fields of bodies are ignored. */
      enabled: z.boolean().default(false),
      /** Block server; 0 takes a free port (`VLLM_NIXL_SIDE_CHANNEL_PORT`). */
      port: port.default(0),
      /** Host by which other engines reach it; empty: `host` (`VLLM_NIXL_SIDE_CHANNEL_HOST`). */
      advertisedHost: z.string().default(""),
      /** SGLang's bootstrap server on prefill engines; 0 takes a free port. */
      bootstrapPort: port.default(0),
      /**
       * Bytes that are really moved per block, a multiple of 16: the model's divided by a factor of one's choice. Llama-3.1-70B
       * in BF16 has 5,242,880 for 16 tokens; 1,024 is a factor of 5,120, by which link speeds are to be divided too.
       */
      bytesPerBlock: z.number().int().min(16).max(16_777_216).multipleOf(16).default(1_024),
      /** How long an unfetched hand-off holds its blocks (`kv_lease_duration`), ms. */
      leaseMs: z.number().int().min(100).max(3_600_000).default(30_000),
      /** What a request gets whose blocks did not all arrive (`kv_load_failure_policy`). */
      loadFailurePolicy: z.enum(["fail", "recompute"]).default("fail"),
      /** For a peer that never answered, ms. */
      handshakeTimeoutMs: z.number().int().min(1).default(5_000),
      /** Longest silence in a transfer, ms. */
      stallTimeoutMs: z.number().int().min(1).default(10_000),
      /** SGLang: prefill leg and decode engine wait for each other, ms (`SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT`). */
      bootstrapTimeoutMs: z.number().int().min(1).default(300_000),
      /** SGLang: decode waits for the first byte, ms (`SGLANG_DISAGGREGATION_WAITING_TIMEOUT`). */
      waitingTimeoutMs: z.number().int().min(1).default(300_000),
      /** Shape of the links from here; speed 0 is as fast as the sockets. */
      link: LinkConfig.prefault({}),
      /** Links to single instances (their `instance`), which have their own shape. */
      links: z
        .array(LinkConfig.extend({ to: z.string().min(1).max(128) }))
        .max(256)
        .default([]),
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
