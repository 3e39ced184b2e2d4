import { MeshError } from "../../../shared/core/errors.ts";
import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";
import { invariant } from "../../../shared/core/invariant.ts";
import { BlockPool } from "./block-pool.ts";
import type {
  BlockEvent,
  EngineListener,
  EngineOptions,
  EngineRequest,
  EngineSequence,
  EngineStats,
  FinishReason,
  KvLoad,
  KvLoadResult,
  StepEnd,
  StepStart,
} from "./engine-types.ts";
import { addTaint, Scheduler } from "./scheduler.ts";
import { Sequence } from "./sequence.ts";
import { StepLoad, stepMs } from "./step-time.ts";

/**
 * One inference engine without a GPU: vLLM's scheduler and block pool, with step times from a fitted
 * model. Deterministic: equal calls at equal times give equal tokens, events and times. Runs in real
 * time behind an HTTP edge, or many at once on a virtual clock.
 *
 * Drive it with `advance(now, listener)`, which ends and begins every step due by `now` at its own
 * model time, so a late timer causes no drift; or step by step with `startStep` and `finishStep`. Call
 * `advance` before `submit` and `abort` when steps may be due, or they would see the change too early.
 *
 * States: idle (no step in progress), stepping. `startStep` idle → stepping or stays idle;
 * `finishStep` stepping → idle; `submit` and `abort` are allowed in both.
 */
export class EngineCore {
  readonly #options: EngineOptions;
  readonly #contextTokensMax: number;
  readonly #pool: BlockPool;
  readonly #scheduler: Scheduler;
  readonly #sequences = new Map<string, Sequence>();
  readonly #load = new StepLoad();
  readonly #scheduled: Sequence[] = [];
  readonly #advanced: Sequence[] = [];
  readonly #finished: Sequence[] = [];
  /** Ended sequences whose blocks a step planned ahead does not see as free yet. */
  #releaseNext: Sequence[] = [];
  /** Ended sequences whose blocks another engine may load, by request id. */
  readonly #kept = new Map<string, Sequence>();
  /** Loads in progress: place of their first block in the prompt, and what each block must hold. */
  readonly #loads = new Map<string, KvLoad>();
  #events: BlockEvent[] = [];
  #step: StepStart | undefined;
  /** Start of the step before, when it ended at this very moment; the time the next plan was made. */
  #plannedAt: number | undefined;
  #slowFactor = 1;
  /** No step begins before this time. */
  #stalledUntil = -Infinity;
  #steps = 0;
  #promptTokens = 0;
  #generatedTokens = 0;

  /** Throws `invalid_request` for options that contradict each other. */
  constructor(options: EngineOptions) {
    this.#options = options;
    this.#contextTokensMax = options.contextTokensMax;
    const { blockSizeTokens, capacityBlocks } = options;
    const poolTokens = (capacityBlocks - 1) * blockSizeTokens;
    if (options.contextTokensMax > poolTokens) {
      throw new MeshError(
        "invalid_request",
        `contextTokensMax ${String(options.contextTokensMax)} exceeds the ${String(poolTokens)} tokens of ` +
          `${String(capacityBlocks - 1)} usable blocks of ${String(blockSizeTokens)}: lower it or raise capacityBlocks`,
        { field: "contextTokensMax" },
      );
    }
    if (options.hasher.blockSizeTokens !== blockSizeTokens) {
      throw new MeshError("invalid_request", "hasher and engine differ in block size", {
        field: "hasher",
      });
    }
    const blockEvents = options.blockEvents ?? true;
    this.#pool = new BlockPool(
      capacityBlocks,
      blockEvents
        ? (low, high) => {
            this.#events.push({ kind: "removed", low, high });
          }
        : undefined,
      options.contents,
    );
    // The scheduler keeps the list it is given, so the list is emptied, never replaced.
    this.#scheduler = new Scheduler(
      {
        blockSizeTokens,
        stepTokensMax: options.stepTokensMax ?? 8192,
        runningMax: options.runningMax ?? 1024,
        prefixCaching: options.prefixCaching ?? true,
        blockEvents,
        contents: options.contents,
      },
      this.#pool,
      this.#events,
    );
  }

  /**
   * Queues a sequence. Throws `invalid_request` for an empty prompt, an id in use or a limit < 1, and
   * `context_length_exceeded` for a prompt that leaves no room for one token.
   */
  submit(request: EngineRequest, now: MonoMs): EngineSequence {
    const promptLength = request.promptTokens.length;
    if (promptLength === 0) {
      throw new MeshError("invalid_request", "the prompt has no tokens", { field: "prompt" });
    }
    if (promptLength >= this.#contextTokensMax) {
      throw new MeshError(
        "context_length_exceeded",
        `the prompt has ${String(promptLength)} tokens, the context holds ${String(this.#contextTokensMax)}`,
        { field: "prompt" },
      );
    }
    if (request.outputTokensMax < 1) {
      throw new MeshError("invalid_request", "outputTokensMax must be at least 1", {
        field: "outputTokensMax",
      });
    }
    if (this.#sequences.has(request.id)) {
      throw new MeshError("already_exists", `request id ${request.id} is in use`, { field: "id" });
    }
    if (this.#kept.has(request.id)) {
      throw new MeshError("already_exists", `request id ${request.id} is kept`, { field: "id" });
    }
    const { hasher, sampler, blockSizeTokens, contents } = this.#options;
    const moves = request.remoteKv !== undefined || request.keepBlocks === true;
    invariant(!moves || contents !== undefined, "KV transfer without a table of contents");
    const given = request.promptHashes;
    if (given !== undefined) {
      const fits = given.length === 2 * Math.floor(promptLength / blockSizeTokens);
      invariant(
        hasher.resumable && fits,
        "promptHashes: one pair per full block, resumable hasher",
      );
    }
    const sequence = new Sequence({
      request,
      submittedAt: now,
      outputTokensMax: Math.min(request.outputTokensMax, this.#contextTokensMax - promptLength),
      chain: hasher.startChain(request.scope ?? {}),
      sampler: sampler.start(request.promptTokens, promptLength, request.seed ?? 0),
      blockSizeTokens,
    });
    this.#sequences.set(request.id, sequence);
    this.#scheduler.waiting.push(sequence);
    return sequence;
  }

  /**
   * Ends a sequence early. In a step it ends with that step, otherwise at once; either way it is among
   * `finished` of the next `StepEnd` only in the first case. False when the id is not live.
   */
  abort(id: string): boolean {
    const sequence = this.#sequences.get(id);
    if (sequence === undefined || sequence.abortRequested) return false;
    if (sequence.stepTokens > 0) {
      sequence.abortRequested = true;
      return true;
    }
    if (sequence.state === "loading") {
      this.#scheduler.loading.delete(sequence);
      this.#loads.delete(id);
    } else {
      const list = sequence.state === "running" ? this.#scheduler.running : this.#scheduler.waiting;
      list.splice(list.indexOf(sequence), 1);
    }
    this.#end(sequence, "abort");
    this.#scheduler.release(sequence);
    return true;
  }

  /**
   * The blocks of a load are there, or not: `goodBlocks` of them. The rest of the prompt, at least its last token, is
   * computed here; with all blocks and `firstTokens` nothing is, and those tokens are the answer's first. Returns the
   * sequence with the tokens so taken, in `taken`; its `finishReason` is set when they ended it. Undefined when the
   * load was given up.
   */
  finishLoad(
    id: string,
    result: KvLoadResult,
    now: MonoMs,
  ): { readonly sequence: EngineSequence; readonly taken: readonly number[] } | undefined {
    const load = this.#loads.get(id);
    const sequence = this.#sequences.get(id);
    if (load === undefined || sequence === undefined) return undefined;
    this.#loads.delete(id);
    this.#writeLoaded(sequence, load, result);
    const { blockSizeTokens } = this.#options;
    const whole = result.goodBlocks * 2 === load.keys.length;
    const given = whole ? (result.firstTokens ?? []) : [];
    const there = (load.firstBlock + result.goodBlocks) * blockSizeTokens;
    const last = given.length > 0 ? sequence.promptLength : sequence.promptLength - 1;
    const computed = Math.min(there, last);
    const { firstBlock } = load;
    this.#scheduler.finishLoad(sequence, { firstBlock, goodBlocks: result.goodBlocks, computed });
    sequence.visibleAt = now;
    const taken: number[] = [];
    for (const token of given) {
      if (sequence.finishReason !== undefined) break;
      this.#options.sampler.take?.(sequence.sampler, token);
      this.#give(sequence, token, now);
      taken.push(token);
    }
    if (sequence.finishReason !== undefined) {
      const { waiting } = this.#scheduler;
      waiting.splice(waiting.indexOf(sequence), 1);
      this.#scheduler.release(sequence);
    }
    return { sequence, taken };
  }

  /** Physical blocks of an ended sequence that keeps them, in prompt order; undefined when it does not. */
  keptBlocks(id: string): readonly number[] | undefined {
    const sequence = this.#kept.get(id);
    return sequence === undefined
      ? undefined
      : Array.from(sequence.blocks.subarray(0, sequence.blockCount));
  }

  /** Gives back what an ended sequence kept; false when it keeps nothing. */
  releaseKept(id: string): boolean {
    const sequence = this.#kept.get(id);
    if (sequence === undefined) return false;
    this.#kept.delete(id);
    this.#scheduler.release(sequence);
    return true;
  }

  /** Plans a step and begins it, or returns undefined when there is nothing to compute. */
  startStep(now: MonoMs): StepStart | undefined {
    invariant(this.#step === undefined, "startStep while a step is in progress");
    const ahead = (this.#options.asyncScheduling ?? true) && this.#plannedAt !== undefined;
    // A plan made ahead was made when the step before began, and saw what had arrived by then.
    const plannedAt = ahead ? monoMs(this.#plannedAt as number) : now;
    const visibleUntil = ahead ? plannedAt : Infinity;
    this.#scheduled.length = 0;
    this.#load.clear();
    let any = this.#scheduler.plan(plannedAt, visibleUntil, this.#scheduled, this.#load);
    this.#flushReleases();
    if (!any && ahead) {
      // The plan made ahead was empty, so the engine plans again once the step's results are in.
      any = this.#scheduler.plan(now, Infinity, this.#scheduled, this.#load);
    }
    this.#plannedAt = undefined;
    if (!any) return undefined;
    const startedAt = monoMs(Math.max(now, this.#stalledUntil));
    const scale = this.#slowFactor / (this.#options.speedup ?? 1);
    const load = this.#load;
    this.#step = {
      startedAt,
      endsAt: monoMs(startedAt + stepMs(this.#options.model, load) * scale),
      stepTokens: load.prefillTokens + load.decodeSequences,
      prefillTokens: load.prefillTokens,
      prefillAttention: load.prefillAttention,
      decodeSequences: load.decodeSequences,
      decodeContextTokens: load.decodeContextTokens,
      events: this.#events.length === 0 ? noEvents : this.#events.slice(),
    };
    this.#events.length = 0;
    this.#steps++;
    return this.#step;
  }

  /** Ends the step in progress: draws tokens, ends sequences, frees what they held. */
  finishStep(): StepEnd {
    const step = this.#step;
    invariant(step !== undefined, "finishStep without a step in progress");
    this.#step = undefined;
    this.#plannedAt = step.startedAt;
    this.#advanced.length = 0;
    this.#finished.length = 0;
    for (const sequence of this.#scheduled) this.#finishSequence(sequence, step.endsAt);
    if (this.#finished.length > 0) {
      const { running } = this.#scheduler;
      let kept = 0;
      for (const sequence of running) {
        if (sequence.state !== "finished") running[kept++] = sequence;
      }
      running.length = kept;
      for (const sequence of this.#finished) {
        if (sequence.request.keepBlocks === true && sequence.finishReason !== "abort") {
          this.#scheduler.keep(sequence);
          this.#kept.set(sequence.request.id, sequence);
        } else {
          this.#releaseNext.push(sequence);
        }
      }
      if (!(this.#options.asyncScheduling ?? true)) this.#flushReleases();
    }
    return { endedAt: step.endsAt, advanced: this.#advanced, finished: this.#finished };
  }

  /**
   * Ends and begins every step due by `now`. Returns when the step then in progress ends, or undefined
   * when the engine is idle.
   */
  advance(now: MonoMs, listener: EngineListener): MonoMs | undefined {
    let at = now;
    for (;;) {
      if (this.#step !== undefined) {
        if (this.#step.endsAt > now) return this.#step.endsAt;
        at = this.#step.endsAt;
        const end = this.finishStep();
        listener.stepEnded?.(end);
      }
      const start = this.startStep(at);
      for (const load of this.#takeLoads()) listener.loadStarted?.(load);
      if (start === undefined) return undefined;
      listener.stepStarted?.(start);
    }
  }

  /** End of the step in progress, or undefined when none is. */
  get stepEndsAt(): MonoMs | undefined {
    return this.#step?.endsAt;
  }

  /** Stands still for `ms`: the step in progress ends that much later, or none begins before. */
  stall(ms: number, now: MonoMs): void {
    if (this.#step === undefined) {
      this.#stalledUntil = Math.max(now, this.#stalledUntil) + ms;
    } else {
      this.#step = { ...this.#step, endsAt: monoMs(this.#step.endsAt + ms) };
    }
  }

  /** Multiplies the duration of steps that begin from now on; 1 is normal. A fault for tests. */
  setSlowFactor(factor: number): void {
    invariant(factor > 0, "slow factor must be positive");
    this.#slowFactor = factor;
  }

  /**
   * Forgets all cached prefixes; false while a sequence holds blocks. As in vLLM the `cleared` event
   * comes with the next step, in front of its other events.
   */
  resetPrefixCache(): boolean {
    if (this.#step === undefined) this.#flushReleases();
    if (!this.#pool.reset()) return false;
    if (this.#options.blockEvents ?? true) this.#events.push({ kind: "cleared" });
    return true;
  }

  /** Distinct cached hashes as (low, high) pairs; O(blocks). */
  cachedBlocks(): Uint32Array {
    return this.#pool.hashes();
  }

  /** How many leading blocks of `hashes`, (low, high) pairs, are cached now. */
  matchBlocks(hashes: Uint32Array): number {
    let matched = 0;
    while (
      matched * 2 < hashes.length &&
      this.#pool.find(hashes[matched * 2] as number, hashes[matched * 2 + 1] as number) >= 0
    ) {
      matched++;
    }
    return matched;
  }

  stats(): EngineStats {
    const scheduler = this.#scheduler;
    let backlog = 0;
    const { loading } = scheduler;
    for (const sequence of scheduler.waiting) {
      // What will be loaded is not computed here, but for its last token.
      backlog += sequence.load === "pending" ? 1 : sequence.length - sequence.computed;
    }
    for (const sequence of scheduler.running) {
      backlog += Math.max(0, sequence.promptLength - sequence.computed);
    }
    return {
      runningSequences: scheduler.running.length,
      waitingSequences: scheduler.waiting.length,
      referencedBlocks: this.#pool.referencedBlocks,
      usableBlocks: this.#pool.usableBlocks,
      cachedBlocks: this.#pool.cachedHashes,
      steps: this.#steps,
      preemptions: scheduler.preemptions,
      prefixQueryTokens: scheduler.prefixQueryTokens,
      prefixHitTokens: scheduler.prefixHitTokens,
      promptTokens: this.#promptTokens,
      generatedTokens: this.#generatedTokens,
      prefillBacklogTokens: backlog,
      loadingSequences: loading.size,
      externalTokens: scheduler.externalTokens,
      keptSequences: this.#kept.size,
    };
  }

  #finishSequence(sequence: Sequence, endedAt: MonoMs): void {
    sequence.computed += sequence.stepTokens;
    sequence.stepTokens = 0;
    if (sequence.abortRequested) {
      this.#end(sequence, "abort");
      this.#finished.push(sequence);
      return;
    }
    if (sequence.computed < sequence.length) return;
    const { sampler } = this.#options;
    if (sequence.taint !== 0 && sequence.generatedTokens === 0) {
      // The KV is not that of these tokens, so neither is the answer.
      sampler.take?.(sequence.sampler, sequence.taint);
    }
    const token = sampler.next(sequence.sampler, this.#endAllowed(sequence));
    if (this.#give(sequence, token, endedAt)) this.#finished.push(sequence);
    this.#advanced.push(sequence);
  }

  #endAllowed(sequence: Sequence): boolean {
    const { request } = sequence;
    const pastMin = sequence.generatedTokens >= (request.outputTokensMin ?? 0);
    return pastMin && request.ignoreEnd !== true;
  }

  /** Appends a token to the answer; true when it ended it. */
  #give(sequence: Sequence, token: number, at: MonoMs): boolean {
    const { sampler } = this.#options;
    const { request } = sequence;
    const pastMin = sequence.generatedTokens >= (request.outputTokensMin ?? 0);
    const endAllowed = pastMin && request.ignoreEnd !== true;
    sequence.appendToken(token);
    if (sequence.firstTokenAt === undefined) {
      sequence.firstTokenAt = at;
      this.#promptTokens += sequence.promptLength;
    }
    sequence.lastTokenAt = at;
    this.#generatedTokens++;
    const stopped =
      (endAllowed && token === sampler.endToken) ||
      (pastMin && request.stopTokens?.includes(token) === true);
    if (stopped || sequence.generatedTokens >= sequence.outputTokensMax) {
      this.#end(sequence, stopped ? "stop" : "length");
      return true;
    }
    return false;
  }

  #takeLoads(): readonly KvLoad[] {
    const { startedLoads } = this.#scheduler;
    if (startedLoads.length === 0) return noLoads;
    const loads = startedLoads.splice(0);
    for (const load of loads) this.#loads.set(load.sequence.request.id, load);
    return loads;
  }

  /** Writes down what the loaded blocks hold, and whether that is wrong. */
  #writeLoaded(sequence: Sequence, load: KvLoad, result: KvLoadResult): void {
    const { contents } = this.#options;
    if (contents === undefined) return;
    for (let i = 0; i < result.goodBlocks; i++) {
      const block = sequence.blocks[load.firstBlock + i] as number;
      const low = load.keys[i * 2] as number;
      const high = load.keys[i * 2 + 1] as number;
      const key = result.foreign?.get(i) ?? { low, high };
      contents.write(block, key.low, key.high);
      addTaint(sequence, contents.taintOf(block, low, high));
    }
  }

  #end(sequence: Sequence, reason: FinishReason): void {
    sequence.finishReason = reason;
    sequence.state = "finished";
    this.#sequences.delete(sequence.request.id);
  }

  #flushReleases(): void {
    if (this.#releaseNext.length === 0) return;
    for (const sequence of this.#releaseNext) this.#scheduler.release(sequence);
    this.#releaseNext = [];
  }
}

const noEvents: readonly BlockEvent[] = [];
const noLoads: readonly KvLoad[] = [];
