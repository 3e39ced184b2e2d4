import type { MonoMs } from "../../../shared/core/ids.ts";
import type { BlockContents } from "../kv-transfer/block-contents.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";

/**
 * Chains the block hashes of one token sequence. Stateful: block k is hashed after block k−1.
 * `tokens[offset .. offset + blockSizeTokens)` is the block; the 64-bit hash that goes into events is
 * written to `out[at]` (low half) and `out[at + 1]` (high half).
 */
export interface BlockHashChain {
  next(tokens: Uint32Array, offset: number, out: Uint32Array, at: number): void;
}

/** What besides its tokens separates the cache entries of a request. */
export interface HashScope {
  /** Value of the body field `cache_salt`; enters the first block. */
  readonly cacheSalt?: string;
  /** LoRA adapter; enters every block. */
  readonly loraName?: string;
}

/** Way of naming blocks: an engine's own hash in the process, a cheap one in a virtual fleet. */
export interface BlockHasher {
  readonly blockSizeTokens: number;
  /**
   * Whether a chain needs nothing but the pair before (`out[at − 2]`, `out[at − 1]`), so that it can go on
   * from hashes it did not make itself. `EngineRequest.promptHashes` needs this.
   */
  readonly resumable: boolean;
  startChain(scope: HashScope): BlockHashChain;
}

/** Settings of one engine. Block counts and tokens are whole numbers ≥ 1. */
export interface EngineOptions {
  readonly model: StepModel;
  readonly blockSizeTokens: number;
  /** Physical KV blocks, the null block included: `capacityBlocks − 1` can hold tokens. */
  readonly capacityBlocks: number;
  /** Token budget of one step (`max_num_batched_tokens`); default 8192. */
  readonly stepTokensMax?: number;
  /** Sequences that may run at once (`max_num_seqs`); default 1024. */
  readonly runningMax?: number;
  /** Longest prompt + answer; must fit into the pool, so that one request alone can always finish. */
  readonly contextTokensMax: number;
  /** Model time runs this much faster than the caller's clock; default 1. */
  readonly speedup?: number;
  /** Reuse of cached prefixes; default true. */
  readonly prefixCaching?: boolean;
  /**
   * Plans step k+1 while step k runs, as vLLM does by default: what arrives or ends during step k is
   * seen by step k+2. Default true.
   */
  readonly asyncScheduling?: boolean;
  /** Whether block events are produced; default true. */
  readonly blockEvents?: boolean;
  readonly hasher: BlockHasher;
  /** Draws the tokens of answers. */
  readonly sampler: TokenSampler;
  /** What every block really holds; only engines with a KV connector have it. As many blocks as the pool. */
  readonly contents?: BlockContents;
}

/**
 * Draws the next token from everything before it. `start` folds a prompt into a state of two words,
 * `next` draws from the state and folds the drawn token in. Equal prefix and seed give equal tokens,
 * so an answer continued on another engine from prompt + tokens so far goes on identically.
 */
export interface TokenSampler {
  start(tokens: Uint32Array, length: number, seed: number): SamplerState;
  /** Next token; `endAllowed` false means the end-of-sequence token may not be drawn. */
  next(state: SamplerState, endAllowed: boolean): number;
  /** Folds a token in that was not drawn here; needed by engines that load KV alone. */
  take?(state: SamplerState, token: number): void;
  /** The token that ends an answer, or −1 when answers end by length alone. */
  readonly endToken: number;
}

/** Sampler position in one answer; owned by the request. */
export interface SamplerState {
  a: number;
  b: number;
}

/** One sequence to generate. */
export interface EngineRequest {
  /** Unique among the engine's live requests. */
  readonly id: string;
  /** 1 to `contextTokensMax − 1` tokens; not changed by the engine. */
  readonly promptTokens: Uint32Array;
  /** Upper bound of generated tokens, ≥ 1; clipped to what the context leaves. */
  readonly outputTokensMax: number;
  /** No end-of-sequence before this many tokens; default 0. */
  readonly outputTokensMin?: number;
  /** Part of what the answer is a function of; default 0. */
  readonly seed?: number;
  /** Generates up to `outputTokensMax` whatever is drawn; default false. */
  readonly ignoreEnd?: boolean;
  /** Token ids that end the answer when drawn; default none. */
  readonly stopTokens?: readonly number[];
  readonly scope?: HashScope;
  /** Reported in the stored events of this request. */
  readonly sessionId?: string;
  /**
   * Hashes of the prompt's full blocks as (low, high) pairs when the caller already has them; must be
   * what `hasher` would give. Saves hashing in a virtual fleet.
   */
  readonly promptHashes?: Uint32Array;
  /** The KV of the prompt is loaded from another engine instead of computed. Needs `contents`. */
  readonly remoteKv?: {
    /** Blocks found in the own cache are not loaded. */
    readonly localHits: boolean;
  };
  /**
   * After the end the blocks stay referenced until `releaseKept`, so that another engine can load them; an aborted
   * sequence keeps nothing. Needs `contents`.
   */
  readonly keepBlocks?: boolean;
}

/** Blocks of a sequence that must be loaded from elsewhere; the sequence holds them and waits. */
export interface KvLoad {
  readonly sequence: EngineSequence;
  /** Place of the first of them in the prompt. */
  readonly firstBlock: number;
  /** (low, high) of what each must hold, the last one possibly not full. */
  readonly keys: Uint32Array;
}

/** How a load ended. */
export interface KvLoadResult {
  /** Leading blocks of the load that are there; what follows is computed. */
  readonly goodBlocks: number;
  /** Good blocks, by place in the load, that hold something else: the key of that. */
  readonly foreign?: ReadonlyMap<number, { readonly low: number; readonly high: number }>;
  /** Tokens that the other engine drew already; taken only when every block is there. */
  readonly firstTokens?: readonly number[];
}

/** Why a sequence ended; `stop` covers the end token and stop tokens. */
export type FinishReason = "stop" | "length" | "abort";

/** State of one sequence as callers see it. Times are the caller's clock, ms. */
export interface EngineSequence {
  readonly request: EngineRequest;
  readonly submittedAt: MonoMs;
  /** When the first step with it was planned: with `asyncScheduling` the start of the step before. */
  readonly scheduledAt: MonoMs | undefined;
  readonly firstTokenAt: MonoMs | undefined;
  readonly lastTokenAt: MonoMs | undefined;
  /** Prompt tokens found in the cache when first scheduled. */
  readonly cachedTokens: number;
  readonly generatedTokens: number;
  /** The token drawn last; meaningless before the first. */
  readonly lastToken: number;
  readonly preemptions: number;
  readonly finishReason: FinishReason | undefined;
  /** Prompt tokens whose KV was loaded from another engine. */
  readonly loadedTokens: number;
}

/** A change of what is cached. Hash pairs are (low, high) words of a 64-bit hash. */
export type BlockEvent =
  | {
      readonly kind: "stored";
      /** (low, high) of each block that became full, in sequence order. */
      readonly hashes: Uint32Array;
      /** (low, high) of the block before the first, or undefined at the start of the sequence. */
      readonly parent: Uint32Array | undefined;
      /** Tokens of exactly these blocks. A view: copy it to keep it beyond the callback. */
      readonly tokens: Uint32Array;
      /** Index of the first block in its sequence. */
      readonly firstBlock: number;
      readonly request: EngineRequest;
    }
  | { readonly kind: "removed"; readonly low: number; readonly high: number }
  | { readonly kind: "cleared" };

/** A step that has begun. */
export interface StepStart {
  readonly startedAt: MonoMs;
  readonly endsAt: MonoMs;
  /** Tokens computed in this step, prefill and decode. */
  readonly stepTokens: number;
  readonly prefillTokens: number;
  /** Σ n·(cached + n/2) over the prefill chunks. */
  readonly prefillAttention: number;
  readonly decodeSequences: number;
  /** Context of the decoding sequences, tokens. */
  readonly decodeContextTokens: number;
  /** In the order the engine made them; empty when `blockEvents` is off. */
  readonly events: readonly BlockEvent[];
}

/** A step that has ended. The lists are reused by the next step: read them at once. */
export interface StepEnd {
  readonly endedAt: MonoMs;
  /** Sequences that got a token in this step, `lastToken` holding it; finished ones included. */
  readonly advanced: readonly EngineSequence[];
  /** Sequences that ended, aborted ones included. */
  readonly finished: readonly EngineSequence[];
}

/** Counts since construction, gauges as of now. */
export interface EngineStats {
  readonly runningSequences: number;
  readonly waitingSequences: number;
  /** Blocks referenced by sequences; cached idle blocks do not count. */
  readonly referencedBlocks: number;
  readonly usableBlocks: number;
  /** Blocks whose contents can be found by hash. */
  readonly cachedBlocks: number;
  readonly steps: number;
  readonly preemptions: number;
  readonly prefixQueryTokens: number;
  readonly prefixHitTokens: number;
  readonly promptTokens: number;
  readonly generatedTokens: number;
  /** Prompt tokens not yet computed, over waiting and running sequences. */
  readonly prefillBacklogTokens: number;
  /** Sequences that wait for KV from another engine; not among the waiting. */
  readonly loadingSequences: number;
  /** Prompt tokens asked of other engines. */
  readonly externalTokens: number;
  /** Ended sequences whose blocks are kept. */
  readonly keptSequences: number;
}

/**
 * Receives what happens while time advances. `stepEnded` may abort and submit; no callback may advance.
 */
export interface EngineListener {
  stepStarted?(start: StepStart): void;
  stepEnded?(end: StepEnd): void;
  /** Blocks are allocated and must be loaded; answered by `finishLoad` or `abort`, at any later time. */
  loadStarted?(load: KvLoad): void;
}
