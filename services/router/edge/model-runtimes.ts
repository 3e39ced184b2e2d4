import { createHash } from "node:crypto";
import type { Logger } from "pino";
import { hashRoot } from "../../shared/core/block-hash.ts";
import { ChatTemplate } from "../../shared/core/chat-template.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { fusedThread } from "../../shared/edge/tokenizer-fused.ts";
import { loadTokenizer } from "../../shared/edge/tokenizer-loader.ts";
import { NativeTokenizer } from "../../shared/edge/tokenizer-native.ts";
import type { TokenizerThread } from "../../shared/edge/tokenizer-thread.ts";
import type { MonoMs } from "../../shared/core/ids.ts";
import type { MemberFacts } from "../core/membership/member.ts";
import { ChatReader, type ChatReaderFigures } from "../core/prompt/chat-reader.ts";
import { DeferringTokenizer } from "../core/prompt/deferring-tokenizer.ts";
import type { ModelRuntime, PromptTokenizer } from "../core/prompt/model-runtime.ts";
import { PromptCache, type PromptCacheFigures } from "../core/prompt/prompt-cache.ts";
import { encodeMsMax } from "./prompt-reading.ts";

/** Largest model file that a worker may deliver, bytes. */
export const artifactBytesMax = 64 * 1024 * 1024;

/** Memory for tokens of texts seen before where nothing else is set, bytes. */
export const tokenCacheBytesDefault = 64 * 1024 * 1024;

/** Most ways of reading chats that are kept. Each is of one tokenizer and template, of which a mesh has few. */
const readersMax = 64;

/** How long a worker may take to deliver a file before another one is asked, ms. */
const deliveryMsMax = 20_000;

/** Limits of a tokenizer's thread. */
const limits = { deadlineMs: encodeMsMax };

/** A tokenizer and the thread for what it puts off. */
interface OpenedTokenizer {
  readonly tokenizer: DeferringTokenizer;
  readonly thread: TokenizerThread;
  readonly backend: "fused" | "native";
}

type TokenizerState =
  | { readonly kind: "wanted" }
  | { readonly kind: "loading" }
  | { readonly kind: "ready"; readonly opened: OpenedTokenizer }
  | { readonly kind: "unsupported"; readonly reason: string };

/**
 * Tokenizers and chat templates of the pools, delivered by workers and checked by digest. Until a file has come,
 * requests of its pool are placed by load. Kept for the life of the process: a mesh serves few models.
 */
export class ModelRuntimes {
  readonly #hashSeed: Uint8Array;
  readonly #cacheFolder: string;
  readonly #log: Logger;
  readonly #facts = new Map<string, MemberFacts>();
  readonly #tokenizers = new Map<string, TokenizerState>();
  readonly #templateSources = new Map<string, string>();
  readonly #runtimes = new Map<string, ModelRuntime>();
  readonly #tokenCacheBytesMax: number;
  readonly #cache: PromptCache;
  readonly #readers = new Map<string, ChatReader>();
  #readersMade = 0;
  #droppedReads: ChatReaderFigures = { read: 0, planned: 0, left: 0 };
  readonly #asked = new Map<string, { readonly streamId: number; readonly at: MonoMs }>();

  constructor(options: {
    readonly hashSeed: Uint8Array;
    readonly log: Logger;
    readonly cacheFolder: string;
    /** Memory for tokens of texts seen before, bytes; default 64 MiB. */
    readonly tokenCacheBytesMax?: number;
  }) {
    this.#hashSeed = options.hashSeed;
    this.#cacheFolder = options.cacheFolder;
    this.#log = options.log;
    this.#tokenCacheBytesMax = options.tokenCacheBytesMax ?? tokenCacheBytesDefault;
    this.#cache = new PromptCache({ bytesMax: (3 * this.#tokenCacheBytesMax) / 4 });
  }

  /** What prompts seen before have saved so far. */
  get tokenCacheFigures(): PromptCacheFigures & ChatReaderFigures {
    let { read, planned, left } = this.#droppedReads;
    for (const { figures } of this.#readers.values()) {
      read += figures.read;
      planned += figures.planned;
      left += figures.left;
    }
    return { ...this.#cache.figures, read, planned, left };
  }

  /** What is needed to read the prompts of a pool; `undefined` before its first worker. */
  get(pool: string): ModelRuntime | undefined {
    const known = this.#runtimes.get(pool);
    if (known !== undefined) return known;
    const facts = this.#facts.get(pool);
    if (facts === undefined) return undefined;
    const state = this.#tokenizers.get(facts.tokenizerSha256);
    const opened = state?.kind === "ready" ? state.opened : undefined;
    const tokenizer = opened?.tokenizer;
    const template = this.#template(facts);
    const runtime: ModelRuntime = {
      tokenizer,
      unsupported: state?.kind === "unsupported",
      later:
        opened === undefined
          ? undefined
          : {
              tokenizer: opened.tokenizer,
              encodeLater: (text, options) => opened.thread.encodeLater(text, options),
            },
      template,
      chats:
        template === undefined || tokenizer === undefined
          ? undefined
          : this.#reader(facts, template, tokenizer),
      addsSpecialTokens: facts.addsSpecialTokens,
      root: hashRoot(this.#hashSeed, { model: facts.models[0] ?? "" }),
    };
    this.#runtimes.set(pool, runtime);
    return runtime;
  }

  /** Takes a worker's facts. A pool's prompts are read with those of the first worker that has a tokenizer. */
  learn(facts: MemberFacts): void {
    const known = this.#facts.get(facts.pool);
    const kept = known?.tokenizerSha256 ?? "";
    if (kept === "" || facts.tokenizerSha256 === kept) {
      this.#facts.set(facts.pool, facts);
      this.#runtimes.delete(facts.pool);
    } else {
      const { workerId, pool, tokenizerSha256 } = facts;
      this.#log.warn(
        { event: "tokenizer_differs", workerId, pool, tokenizerSha256, used: kept },
        "worker has another tokenizer than its pool, or none; its pool's prompts are read with the first one",
      );
    }
    const { tokenizerSha256 } = facts;
    if (tokenizerSha256 !== "" && !this.#tokenizers.has(tokenizerSha256)) {
      this.#tokenizers.set(tokenizerSha256, { kind: "wanted" });
    }
  }

  /**
   * Digests (hex) of the files that this worker should deliver now. Each file is asked of one worker at a time;
   * `streamId` is its stream, `forget` and time free it for another.
   */
  claim(facts: MemberFacts, streamId: number, now: MonoMs): string[] {
    const missing: string[] = [];
    const { tokenizerSha256, chatTemplateSha256 } = facts;
    if (this.#tokenizers.get(tokenizerSha256)?.kind === "wanted") missing.push(tokenizerSha256);
    if (chatTemplateSha256 !== "" && !this.#templateSources.has(chatTemplateSha256)) {
      missing.push(chatTemplateSha256);
    }
    return missing.filter((sha256) => {
      const asked = this.#asked.get(sha256);
      if (asked !== undefined && now - asked.at < deliveryMsMax) return false;
      this.#asked.set(sha256, { streamId, at: now });
      return true;
    });
  }

  /** A stream is gone; what it was asked for is free to be asked of another. */
  forget(streamId: number): void {
    for (const [sha256, asked] of this.#asked) {
      if (asked.streamId === streamId) this.#asked.delete(sha256);
    }
  }

  /** Whether every tokenizer that a worker has can be used now, or never will. */
  get settled(): boolean {
    return [...this.#tokenizers.values()].every(
      (t) => t.kind === "ready" || t.kind === "unsupported",
    );
  }

  /** A file has come whole. Returns false when it is not the file that the digest names. */
  deliver(sha256: string, content: Uint8Array): boolean {
    if (createHash("sha256").update(content).digest("hex") !== sha256) return false;
    this.#asked.delete(sha256);
    const state = this.#tokenizers.get(sha256);
    if (state === undefined) {
      this.#templateSources.set(sha256, new TextDecoder().decode(content));
      this.#runtimes.clear();
    } else if (state.kind === "wanted") this.#load(sha256, content);
    return true;
  }

  #load(sha256: string, content: Uint8Array): void {
    this.#tokenizers.set(sha256, { kind: "loading" });
    this.#open(sha256, content).then(
      (opened) => {
        this.#tokenizers.set(sha256, { kind: "ready", opened });
        this.#runtimes.clear();
        const { backend } = opened;
        this.#log.info({ event: "tokenizer_loaded", sha256, backend }, "tokenizer loaded");
      },
      (error: unknown) => {
        const reason = error instanceof Error ? error.message : String(error);
        this.#tokenizers.set(sha256, { kind: "unsupported", reason });
        this.#runtimes.clear();
        this.#log.error(
          { event: "tokenizer_refused", sha256, reason },
          "tokenizer cannot be used; prompts of its pools are placed by load",
        );
      },
    );
  }

  async #open(sha256: string, content: Uint8Array): Promise<OpenedTokenizer> {
    try {
      const cacheFolder = this.#cacheFolder;
      const inline: PromptTokenizer = await loadTokenizer(content, { cacheFolder });
      const thread = await fusedThread(content, { cacheFolder, limits });
      return { tokenizer: new DeferringTokenizer(inline), thread, backend: "fused" };
    } catch (error) {
      if (!(error instanceof MeshError) || error.code !== "invalid_request") throw error;
      const reason = error.message;
      this.#log.warn(
        { event: "tokenizer_not_fused", sha256, reason },
        "tokenizer has no fused form; its texts are encoded in a thread by the native package",
      );
    }
    const thread = await NativeTokenizer.open(content, { limits });
    return { tokenizer: new DeferringTokenizer(undefined), thread, backend: "native" };
  }

  /** Ends the threads; what they encode is dropped. */
  close(): void {
    for (const state of this.#tokenizers.values()) {
      if (state.kind === "ready") void state.opened.thread.close();
    }
  }

  /** The reader of a tokenizer and template, kept when a worker joins or leaves. */
  #reader(
    facts: MemberFacts,
    template: ChatTemplate,
    tokenizer: PromptTokenizer,
  ): ChatReader | undefined {
    const { tokenizerSha256, chatTemplateSha256, bosToken, eosToken } = facts;
    const key = JSON.stringify([tokenizerSha256, chatTemplateSha256, bosToken, eosToken]);
    const known = this.#readers.get(key);
    if (known !== undefined) return known;
    const addedTokens = tokenizer.addedTokens?.();
    if (addedTokens === undefined) return undefined;
    const reader = new ChatReader({
      syntax: template.syntax,
      contentFormat: template.contentFormat,
      specialTokens: template.specialTokens,
      tokenizer,
      addedTokens,
      cache: this.#cache,
      chainBytesMax: this.#tokenCacheBytesMax / 4,
      domain: this.#readersMade++,
    });
    if (this.#readers.size >= readersMax) {
      const { read, planned, left } = this.tokenCacheFigures;
      this.#droppedReads = { read, planned, left };
      this.#readers.clear();
    }
    this.#readers.set(key, reader);
    return reader;
  }

  #template(facts: MemberFacts): ChatTemplate | undefined {
    const source = this.#templateSources.get(facts.chatTemplateSha256);
    if (source === undefined) return undefined;
    try {
      return new ChatTemplate(source, { bos: facts.bosToken, eos: facts.eosToken });
    } catch (error) {
      this.#log.error(
        { event: "chat_template_refused", pool: facts.pool, err: error },
        "chat template cannot be used; chats of its pool are placed by load",
      );
      return undefined;
    }
  }
}
