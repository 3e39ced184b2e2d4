import { createHash, randomFillSync } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { MeshError } from "../core/errors.ts";
import { FusedBpe } from "../core/tokenizer/fused-bpe.ts";
import type { Tokenizer } from "../core/tokenizer/tokenizer.ts";
import type { TokenizerJob, TokenizerJobResult } from "./tokenizer-worker.ts";

/** Longest a build may take; about 0.7 s of CPU is normal for a vocabulary of 150 000. */
const buildMsMax = 60_000;

/** Largest model file read, bytes; tokenizer.json files of today's models have 7 to 35 MB. */
const modelFileSizeMax = 256 << 20;

/** Options of `loadTokenizer`. */
export interface LoadTokenizerOptions {
  readonly signal?: AbortSignal;
  /** Folder for tables built before (`tokenizer-cache.ts`); none when empty or absent. */
  readonly cacheFolder?: string;
}

/**
 * Builds a tokenizer from the bytes of a `tokenizer.json` in a worker thread, so that the event loop
 * never waits for the parse; what comes back is adopted, not copied. Its word table is keyed with fresh
 * random numbers.
 *
 * Rejects with `invalid_request` when the file is malformed or of an unsupported kind (place by load
 * alone then), `cancelled` when `signal` aborts, `deadline_exceeded` after 60 s.
 */
export async function loadTokenizer(
  json: Uint8Array,
  options: LoadTokenizerOptions = {},
): Promise<Tokenizer> {
  const { signal, cacheFolder = "" } = options;
  const cancelled = (): MeshError =>
    new MeshError("cancelled", "loading the tokenizer was cancelled", { cause: signal?.reason });
  if (isAborted(signal)) throw cancelled();
  const job: TokenizerJob = {
    json: await shareInPieces(json),
    hashKey: randomFillSync(new Int32Array(4)),
    cacheFolder,
  };
  // The signal may have aborted while the bytes were copied.
  if (isAborted(signal)) throw cancelled();
  const worker = new Worker(new URL("./tokenizer-worker.ts", import.meta.url), {
    workerData: job,
    name: "tokenizer-build",
  });
  const { promise, resolve, reject } = Promise.withResolvers<TokenizerJobResult>();
  const onAbort = (): void => {
    reject(cancelled());
  };
  const timer = setTimeout(() => {
    const limit = `${String(buildMsMax)} ms`;
    reject(new MeshError("deadline_exceeded", `building the tokenizer took longer than ${limit}`));
  }, buildMsMax);
  signal?.addEventListener("abort", onAbort, { once: true });
  worker.once("message", resolve);
  worker.once("error", reject);
  worker.once("exit", (code) => {
    reject(new Error(`the tokenizer thread exited with ${String(code)} before it answered`));
  });
  try {
    const result = await promise;
    if (result.kind === "refused") {
      const details = result.field === undefined ? {} : { field: result.field };
      throw new MeshError("invalid_request", result.message, details);
    }
    return new FusedBpe(result.tables);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
    await worker.terminate();
  }
}

function isAborted(signal: AbortSignal | undefined): boolean {
  return signal?.aborted === true;
}

/** Bytes copied per turn of the event loop, well under 1 ms of work. */
const pieceSize = 1 << 20;

/** A copy that a thread can read as it is. In pieces, because copying 11 MB at once takes 5 ms and more. */
export async function shareInPieces(bytes: Uint8Array): Promise<Uint8Array<SharedArrayBuffer>> {
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length));
  for (let at = 0; at < bytes.length; at += pieceSize) {
    shared.set(bytes.subarray(at, at + pieceSize), at);
    await setImmediate();
  }
  return shared;
}

/** What a model folder says about turning requests into tokens. */
export interface ModelFiles {
  /** Bytes of `tokenizer.json`. */
  readonly tokenizerJson: Uint8Array;
  /** SHA-256 of `tokenizerJson`, hexadecimal; replicas compare it. */
  readonly tokenizerSha256: string;
  /** Source of the chat template; undefined for models without one. */
  readonly chatTemplate: string | undefined;
  /** SHA-256 of the template's UTF-8 bytes, hexadecimal. */
  readonly chatTemplateSha256: string | undefined;
  /** Contents of `tokenizer_config.json`; empty when there is none. */
  readonly config: Readonly<Record<string, unknown>>;
}

/**
 * Reads a model folder in the Hugging Face layout: `tokenizer.json`, and a chat template from
 * `chat_template.jinja` or else from `chat_template` in `tokenizer_config.json` (a string, or a list of
 * named templates of which "default" counts). Rejects with `not_found` when there is no
 * `tokenizer.json`, `invalid_request` when a file is malformed or larger than 256 MiB.
 */
export async function readModelFiles(dir: string, signal?: AbortSignal): Promise<ModelFiles> {
  const tokenizerJson = await readOptional(join(dir, "tokenizer.json"), signal);
  if (tokenizerJson === undefined) {
    throw new MeshError("not_found", `${dir} has no tokenizer.json`, { field: "tokenizer.json" });
  }
  const config = parseConfig(await readOptional(join(dir, "tokenizer_config.json"), signal));
  const templateFile = await readOptional(join(dir, "chat_template.jinja"), signal);
  const chatTemplate = templateFile?.toString("utf8") ?? templateOf(config["chat_template"]);
  return {
    tokenizerJson,
    tokenizerSha256: sha256Hex(tokenizerJson),
    chatTemplate,
    chatTemplateSha256: chatTemplate === undefined ? undefined : sha256Hex(chatTemplate),
    config,
  };
}

/**
 * Text of a special token (`bos_token`, `eos_token`, `pad_token`, …) in a `tokenizer_config.json`, which
 * is a string or an object with `content`; undefined when the model has none.
 */
export function specialTokenOf(
  config: Readonly<Record<string, unknown>>,
  name: string,
): string | undefined {
  const value = config[name];
  if (typeof value === "string") return value;
  return isRecord(value) && typeof value["content"] === "string" ? value["content"] : undefined;
}

function sha256Hex(content: string | Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}

async function readOptional(path: string, signal?: AbortSignal): Promise<Buffer | undefined> {
  try {
    const { size } = await stat(path);
    if (size > modelFileSizeMax) {
      const limit = `${String(modelFileSizeMax)} bytes`;
      throw new MeshError(
        "invalid_request",
        `${path} has ${String(size)} bytes, more than ${limit}`,
      );
    }
    return await readFile(path, { signal });
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw error;
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parseConfig(bytes: Buffer | undefined): Readonly<Record<string, unknown>> {
  if (bytes === undefined) return {};
  const field = "tokenizer_config.json";
  let parsed: unknown;
  try {
    parsed = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new MeshError("invalid_request", "tokenizer_config.json is not JSON", { cause, field });
  }
  if (isRecord(parsed)) return parsed;
  throw new MeshError("invalid_request", "tokenizer_config.json is not an object", { field });
}

function templateOf(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) return undefined;
  const templates = value.filter(isRecord);
  const chosen = templates.find((template) => template["name"] === "default")?.["template"];
  return typeof chosen === "string" ? chosen : undefined;
}
