import type { MonoMs } from "../../../shared/core/ids.ts";
import type {
  BlockHashChain,
  EngineRequest,
  EngineSequence,
  FinishReason,
  SamplerState,
} from "./engine-types.ts";

/** Mutable state of one sequence, owned by the scheduler and the engine. */
export class Sequence implements EngineSequence {
  readonly request: EngineRequest;
  readonly submittedAt: MonoMs;
  readonly promptLength: number;
  /** Prompt followed by what was generated. Grows by doubling. */
  tokens: Uint32Array;
  length: number;
  /** Tokens whose KV is computed. */
  computed = 0;
  /** Tokens of this sequence in the step in progress. */
  stepTokens = 0;
  blocks: Int32Array;
  blockCount = 0;
  /** Leading blocks that are findable in the pool. */
  cachedBlocks = 0;
  /** (low, high) of the full blocks hashed so far. */
  hashes: Uint32Array;
  hashedBlocks = 0;
  readonly chain: BlockHashChain;
  readonly sampler: SamplerState;
  readonly outputTokensMax: number;
  state: "waiting" | "loading" | "running" | "finished" = "waiting";
  /** Not planned before this time; submission, or the end of its load. */
  visibleAt: MonoMs;
  /** Whether the prompt's KV is still to be loaded; `done` means that the blocks are held already. */
  load: "none" | "pending" | "done";
  loadedTokens = 0;
  /** Other than 0: some block holds the KV of other tokens, and the answer will be another. */
  taint = 0;
  abortRequested = false;
  scheduledAt: MonoMs | undefined;
  firstTokenAt: MonoMs | undefined;
  lastTokenAt: MonoMs | undefined;
  cachedTokens = 0;
  lastToken = 0;
  preemptions = 0;
  finishReason: FinishReason | undefined;

  constructor(options: {
    request: EngineRequest;
    submittedAt: MonoMs;
    outputTokensMax: number;
    chain: BlockHashChain;
    sampler: SamplerState;
    blockSizeTokens: number;
  }) {
    const { request } = options;
    this.request = request;
    this.submittedAt = options.submittedAt;
    this.visibleAt = options.submittedAt;
    this.load = request.remoteKv === undefined ? "none" : "pending";
    this.promptLength = request.promptTokens.length;
    this.length = this.promptLength;
    this.outputTokensMax = options.outputTokensMax;
    this.chain = options.chain;
    this.sampler = options.sampler;
    const room = this.promptLength + Math.min(options.outputTokensMax, 64);
    this.tokens = new Uint32Array(room);
    this.tokens.set(request.promptTokens);
    const blockRoom = Math.ceil(room / options.blockSizeTokens) + 1;
    this.blocks = new Int32Array(blockRoom);
    this.hashes = new Uint32Array(blockRoom * 2);
    const given = request.promptHashes;
    if (given !== undefined) {
      this.hashes.set(given);
      this.hashedBlocks = given.length / 2;
    }
  }

  get generatedTokens(): number {
    return this.length - this.promptLength;
  }

  appendToken(token: number): void {
    if (this.length === this.tokens.length) {
      const grown = new Uint32Array(this.tokens.length * 2);
      grown.set(this.tokens);
      this.tokens = grown;
    }
    this.tokens[this.length++] = token;
    this.lastToken = token;
  }

  appendBlock(block: number): void {
    if (this.blockCount === this.blocks.length) {
      const grown = new Int32Array(this.blocks.length * 2);
      grown.set(this.blocks);
      this.blocks = grown;
    }
    this.blocks[this.blockCount++] = block;
  }

  /** Hashes full blocks up to `count`; those hashed before are kept, also over a preemption. */
  hashUpTo(count: number, blockSizeTokens: number): void {
    if (count * 2 > this.hashes.length) {
      const grown = new Uint32Array(Math.max(count * 2, this.hashes.length * 2));
      grown.set(this.hashes);
      this.hashes = grown;
    }
    for (; this.hashedBlocks < count; this.hashedBlocks++) {
      const at = this.hashedBlocks * 2;
      this.chain.next(this.tokens, this.hashedBlocks * blockSizeTokens, this.hashes, at);
    }
  }
}
