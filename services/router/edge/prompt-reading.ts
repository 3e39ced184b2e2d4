import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type { LoadOnlyReason } from "../core/openai/openai-prompt.ts";
import type { OpenAiRequest } from "../core/openai/openai-request.ts";
import { TokensAwaited } from "../core/prompt/deferring-tokenizer.ts";
import type { EncodedText, ModelRuntime } from "../core/prompt/model-runtime.ts";
import { refuseHopelessLength } from "../core/prompt/prompt-size.ts";
import { loadOnlyPrompt, readPrompt, type TokenisedPrompt } from "../core/prompt/read-prompt.ts";
import type { routerMetrics } from "../metrics.ts";

/** Longest wait for the tokens of one prompt, ms; then it is placed by load. */
export const encodeMsMax = 5_000;
/** Texts of one prompt that are encoded elsewhere; the prompt is read again after each. */
const textsMax = 64;
/** Bodies kept while their tokens are awaited, together, bytes. */
const keptBytesMax = 64 << 20;

/** What reading prompts needs. */
export interface PromptReadingDependencies {
  readonly clock: Clock;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly blockSizeTokens: number;
  readonly keptBytesMax?: number;
}

/** A request whose prompt is read. */
export interface PromptToRead {
  readonly openAi: OpenAiRequest;
  readonly bodyBytes: number;
  readonly runtime: ModelRuntime | undefined;
  /** Most tokens that a worker of the pool takes; 0 when unknown. */
  readonly contextMax: number;
}

/** A prompt whose tokens are awaited. */
export interface AwaitedPrompt {
  /** Resolves once it is read, or placed by load for a named reason. Rejects with what the template refuses, or as cancelled. */
  readonly read: Promise<TokenisedPrompt>;
  /** Drops it; `read` rejects. */
  cancel(): void;
}

/**
 * Reads prompts: at once when that takes little, otherwise after a thread has encoded their long texts. Limits: 5 s, 64 texts
 * and a share of 64 MiB of kept bodies for each prompt; beyond, it is placed by load with the reason.
 */
export class PromptReading {
  readonly #d: PromptReadingDependencies;
  #keptBytes = 0;

  constructor(dependencies: PromptReadingDependencies) {
    this.#d = dependencies;
  }

  /** Bytes of bodies kept now. */
  get keptBytes(): number {
    return this.#keptBytes;
  }

  /**
   * Reads a prompt, or says that its tokens are awaited. `keep` keeps a copy of the body then, and gives what
   * reads the copy. Throws what is wrong with the request.
   */
  read(
    request: PromptToRead,
    keep: () => { readonly bytes: number; readonly reread: () => OpenAiRequest },
  ): TokenisedPrompt | AwaitedPrompt {
    const { openAi, bodyBytes, runtime, contextMax } = request;
    refuseHopelessLength(openAi.prompt, { bodyBytes, contextMax }, runtime?.tokenizer);
    const later = runtime?.later;
    later?.tokenizer.begin();
    try {
      return readPrompt(openAi.prompt, bodyBytes, runtime, this.#d.blockSizeTokens);
    } catch (error) {
      if (!(error instanceof TokensAwaited) || later === undefined) throw error;
    }
    const first = later.tokenizer.takeDeferred() ?? new Uint8Array(0);
    if (this.#keptBytes + bodyBytes > (this.#d.keptBytesMax ?? keptBytesMax)) {
      this.#d.metrics.tokenizerTexts.inc({ outcome: "tokenizer_busy" });
      return loadOnlyPrompt("tokenizer_busy", bodyBytes);
    }
    const kept = keep();
    this.#keptBytes += kept.bytes;
    const abort = new AbortController();
    const read = this.#readLater(request, first, kept.reread, abort.signal).finally(() => {
      this.#keptBytes -= kept.bytes;
    });
    return {
      read,
      cancel: () => {
        abort.abort();
      },
    };
  }

  async #readLater(
    { bodyBytes, runtime }: PromptToRead,
    first: Uint8Array,
    reread: () => OpenAiRequest,
    signal: AbortSignal,
  ): Promise<TokenisedPrompt> {
    const later = runtime?.later;
    const byLoad = (reason: LoadOnlyReason): TokenisedPrompt => loadOnlyPrompt(reason, bodyBytes);
    if (later === undefined) return byLoad("no_tokenizer");
    const { clock, blockSizeTokens } = this.#d;
    const deadline = clock.now() + encodeMsMax;
    const given: EncodedText[] = [];
    for (let text = first; given.length < textsMax;) {
      const deadlineMs = Math.max(1, deadline - clock.now());
      const ids = await this.#encode(text, later.encodeLater(text, { deadlineMs, signal }));
      if (typeof ids === "string") return byLoad(ids);
      given.push({ text, ids });
      const { prompt } = reread();
      later.tokenizer.begin(given);
      try {
        return readPrompt(prompt, bodyBytes, runtime, blockSizeTokens);
      } catch (error) {
        if (!(error instanceof TokensAwaited)) throw error;
        text = later.tokenizer.takeDeferred() ?? new Uint8Array(0);
      } finally {
        later.tokenizer.begin();
      }
    }
    return byLoad("tokenizer_limit");
  }

  /** The ids, or why there are none; rejects as cancelled only. */
  async #encode(
    text: Uint8Array,
    encoding: Promise<Uint32Array>,
  ): Promise<Uint32Array | LoadOnlyReason> {
    const { tokenizerTexts, tokenizerWaiting, tokenizerWaitingBytes } = this.#d.metrics;
    tokenizerWaiting.inc();
    tokenizerWaitingBytes.inc(text.length);
    try {
      const ids = await encoding;
      tokenizerTexts.inc({ outcome: "encoded" });
      return ids;
    } catch (error) {
      const reason = reasonOf(error);
      tokenizerTexts.inc({ outcome: reason ?? "cancelled" });
      if (reason === undefined) throw error;
      return reason;
    } finally {
      tokenizerWaiting.dec();
      tokenizerWaitingBytes.dec(text.length);
    }
  }
}

function reasonOf(error: unknown): LoadOnlyReason | undefined {
  switch (error instanceof MeshError ? error.code : "") {
    case "cancelled":
      return undefined;
    case "overloaded":
    case "deadline_exceeded":
      return "tokenizer_busy";
    case "request_too_large":
      return "tokenizer_limit";
    case "invalid_request":
      return "tokenizer_refused";
    default:
      return "tokenizer_lost";
  }
}
