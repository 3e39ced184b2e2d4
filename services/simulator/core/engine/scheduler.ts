import { invariant } from "../../../shared/core/invariant.ts";
import type { MonoMs } from "../../../shared/core/ids.ts";
import type { BlockPool } from "./block-pool.ts";
import { partialBlockKey } from "../kv-transfer/block-content.ts";
import type { BlockContents } from "../kv-transfer/block-contents.ts";
import type { BlockEvent, KvLoad } from "./engine-types.ts";
import type { Sequence } from "./sequence.ts";
import type { StepLoad } from "./step-time.ts";

/** Limits of the scheduler, resolved. */
export interface SchedulerOptions {
  readonly blockSizeTokens: number;
  readonly stepTokensMax: number;
  readonly runningMax: number;
  readonly prefixCaching: boolean;
  readonly blockEvents: boolean;
  readonly contents?: BlockContents | undefined;
}

/**
 * Chooses what each step computes, as vLLM's v1 scheduler does (`vllm/v1/core/sched/scheduler.py`,
 * 0.19–0.32, first come first served): one token budget per step; running sequences first, in order, one
 * decode token or the next chunk of their prompt; then waiting ones while nothing was preempted. Without
 * a free block the last running sequence is preempted: it loses its blocks, goes to the front of the
 * queue and computes its prompt and answer so far again.
 */
export class Scheduler {
  readonly running: Sequence[] = [];
  /** Arrival order; preempted sequences at the front. */
  readonly waiting: Sequence[] = [];
  /** Sequences that hold blocks into which another engine's KV is being loaded. */
  readonly loading = new Set<Sequence>();
  /** Loads that began since the caller last took them. */
  readonly startedLoads: KvLoad[] = [];
  preemptions = 0;
  /** Prompt tokens asked of other engines; like vLLM's, also those that then were not loaded. */
  externalTokens = 0;
  prefixQueryTokens = 0;
  prefixHitTokens = 0;
  readonly #options: SchedulerOptions;
  readonly #pool: BlockPool;
  readonly #events: BlockEvent[];

  /** `events` receives stored events; the pool's owner puts the removed ones into the same list. */
  constructor(options: SchedulerOptions, pool: BlockPool, events: BlockEvent[]) {
    this.#options = options;
    this.#pool = pool;
    this.#events = events;
  }

  /**
   * Plans one step: fills `scheduled` and `load` and takes the blocks. Sequences submitted after
   * `visibleUntil` stay out. Returns false when there is nothing to compute.
   */
  plan(now: MonoMs, visibleUntil: number, scheduled: Sequence[], load: StepLoad): boolean {
    let budget = this.#options.stepTokensMax;
    let preempted = false;
    for (let i = 0; i < this.running.length && budget > 0; i++) {
      const sequence = this.running[i] as Sequence;
      const tokens = Math.min(sequence.length - sequence.computed, budget);
      if (!this.#makeRoom(sequence, sequence.computed + tokens)) {
        preempted = true;
        break;
      }
      budget -= tokens;
      this.#take(sequence, tokens, scheduled, load);
    }
    preempted ||= this.#preemptedInPlan;
    this.#preemptedInPlan = false;
    while (
      !preempted &&
      budget > 0 &&
      this.waiting.length > 0 &&
      this.running.length < this.#options.runningMax
    ) {
      const sequence = this.waiting[0] as Sequence;
      if (sequence.visibleAt > visibleUntil) break;
      if (sequence.load === "pending") {
        if (!this.#startLoad(sequence)) break;
        this.waiting.shift();
        continue;
      }
      const tokens =
        sequence.load === "done" ? this.#resume(sequence, budget) : this.#admit(sequence, budget);
      if (tokens === 0) break;
      this.waiting.shift();
      this.running.push(sequence);
      sequence.state = "running";
      sequence.scheduledAt ??= now;
      budget -= tokens;
      this.#take(sequence, tokens, scheduled, load);
    }
    return scheduled.length > 0;
  }

  /** Gives back the blocks of a sequence. */
  release(sequence: Sequence): void {
    this.#pool.release(sequence.blocks, sequence.blockCount);
    sequence.blockCount = 0;
    sequence.cachedBlocks = 0;
  }

  /**
   * Takes what a load brought: `goodBlocks` leading blocks of it, with KV computed up to `computed`. The sequence goes
   * to the front of the queue with its blocks.
   */
  finishLoad(
    sequence: Sequence,
    load: { readonly firstBlock: number; readonly goodBlocks: number; readonly computed: number },
  ): void {
    this.loading.delete(sequence);
    sequence.load = "done";
    sequence.computed = load.computed;
    const tokens = (load.firstBlock + load.goodBlocks) * this.#options.blockSizeTokens;
    const end = Math.min(tokens, sequence.promptLength);
    sequence.loadedTokens = end - load.firstBlock * this.#options.blockSizeTokens;
    if (this.#options.prefixCaching) this.#cacheFullBlocks(sequence, end);
    sequence.state = "waiting";
    this.waiting.unshift(sequence);
  }

  /** (low, high) of the first `tokens` tokens' blocks from `firstBlock` on, the last one possibly not full. */
  blockKeys(sequence: Sequence, firstBlock: number, tokens: number): Uint32Array {
    const { blockSizeTokens } = this.#options;
    const full = Math.floor(tokens / blockSizeTokens);
    sequence.hashUpTo(full, blockSizeTokens);
    const count = Math.ceil(tokens / blockSizeTokens);
    const keys = new Uint32Array((count - firstBlock) * 2);
    keys.set(sequence.hashes.subarray(firstBlock * 2, full * 2));
    if (count > full) {
      const parent =
        full === 0
          ? { low: 0, high: 0 }
          : {
              low: sequence.hashes[full * 2 - 2] as number,
              high: sequence.hashes[full * 2 - 1] as number,
            };
      const key = partialBlockKey(parent, sequence.tokens, full * blockSizeTokens, tokens);
      keys[keys.length - 2] = key.low;
      keys[keys.length - 1] = key.high;
    }
    return keys;
  }

  /** Writes down what the blocks of an ended prefill hold, so that another engine can load them. */
  keep(sequence: Sequence): void {
    const { contents } = this.#options;
    invariant(contents !== undefined, "kept blocks without a table of contents");
    const keys = this.blockKeys(sequence, 0, sequence.computed);
    const wrong = sequence.taint;
    for (let i = 0; i < sequence.blockCount && i * 2 < keys.length; i++) {
      const low = keys[i * 2] as number;
      const high = keys[i * 2 + 1] as number;
      // A cached block of a tainted chain keeps the content that it has.
      if (i < sequence.cachedBlocks && wrong !== 0) continue;
      contents.write(sequence.blocks[i] as number, (low ^ wrong) >>> 0, high);
    }
  }

  #preemptedInPlan = false;

  /** Allocates blocks so that `sequence` can hold `tokens`; false when it was preempted itself. */
  #makeRoom(sequence: Sequence, tokens: number): boolean {
    const needed = Math.ceil(tokens / this.#options.blockSizeTokens);
    while (needed - sequence.blockCount > this.#pool.freeBlocks) {
      const victim = this.running.pop();
      invariant(victim !== undefined, "preemption without a running sequence");
      this.#preempt(victim);
      if (victim === sequence) return false;
    }
    while (sequence.blockCount < needed) sequence.appendBlock(this.#pool.allocate());
    return true;
  }

  #preempt(victim: Sequence): void {
    this.release(victim);
    victim.computed = 0;
    victim.taint = 0;
    // What was loaded is lost; it is computed here, as vLLM does.
    victim.load = "none";
    victim.state = "waiting";
    victim.preemptions++;
    this.waiting.unshift(victim);
    this.preemptions++;
    this.#preemptedInPlan = true;
  }

  /** Leading blocks of a sequence that are cached, and how many of them nobody references. */
  #findPrefix(sequence: Sequence, wanted: boolean): { hits: number; idleHits: number } {
    const { blockSizeTokens, prefixCaching } = this.#options;
    let hits = 0;
    let idleHits = 0;
    if (prefixCaching && wanted) {
      // The last token is always computed: its output is what the first answer token is drawn from.
      const hitsMax = Math.floor((sequence.length - 1) / blockSizeTokens);
      sequence.hashUpTo(hitsMax, blockSizeTokens);
      for (; hits < hitsMax; hits++) {
        const low = sequence.hashes[hits * 2] as number;
        const high = sequence.hashes[hits * 2 + 1] as number;
        const block = this.#pool.find(low, high);
        if (block < 0) break;
        if (!this.#pool.isReferenced(block)) idleHits++;
      }
    }
    return { hits, idleHits };
  }

  /** References the blocks found and appends fresh ones. */
  #takeBlocks(sequence: Sequence, hits: number, fresh: number): void {
    const { contents } = this.#options;
    for (let i = 0; i < hits; i++) {
      const low = sequence.hashes[i * 2] as number;
      const high = sequence.hashes[i * 2 + 1] as number;
      const block = this.#pool.find(low, high);
      this.#pool.touch(block);
      sequence.appendBlock(block);
      if (contents !== undefined) addTaint(sequence, contents.taintOf(block, low, high));
    }
    for (let i = 0; i < fresh; i++) sequence.appendBlock(this.#pool.allocate());
    sequence.cachedBlocks = hits;
  }

  /** Allocates the whole prompt and begins to load what is not cached here; false for no room. */
  #startLoad(sequence: Sequence): boolean {
    const { blockSizeTokens } = this.#options;
    const wanted = sequence.request.remoteKv?.localHits === true;
    const { hits, idleHits } = this.#findPrefix(sequence, wanted);
    const fresh = Math.ceil(sequence.promptLength / blockSizeTokens) - hits;
    if (fresh + idleHits > this.#pool.freeBlocks) return false;
    this.#takeBlocks(sequence, hits, fresh);
    sequence.computed = hits * blockSizeTokens;
    sequence.cachedTokens = sequence.computed;
    this.prefixQueryTokens += sequence.promptLength;
    this.prefixHitTokens += sequence.computed;
    this.externalTokens += sequence.promptLength - sequence.computed;
    sequence.state = "loading";
    this.loading.add(sequence);
    const keys = this.blockKeys(sequence, hits, sequence.promptLength);
    this.startedLoads.push({ sequence, firstBlock: hits, keys });
    return true;
  }

  /** Takes the blocks that a loaded sequence still needs for its next tokens; 0 for no room. */
  #resume(sequence: Sequence, budget: number): number {
    const tokens = Math.min(sequence.length - sequence.computed, budget);
    const needed = Math.ceil((sequence.computed + tokens) / this.#options.blockSizeTokens);
    const fresh = Math.max(0, needed - sequence.blockCount);
    if (fresh > this.#pool.freeBlocks) return 0;
    for (let i = 0; i < fresh; i++) sequence.appendBlock(this.#pool.allocate());
    sequence.load = "none";
    return tokens;
  }

  /** Finds the cached prefix and takes blocks for the first chunk; returns its tokens, 0 for no room. */
  #admit(sequence: Sequence, budget: number): number {
    const { blockSizeTokens } = this.#options;
    const { hits, idleHits } = this.#findPrefix(sequence, true);
    const cachedTokens = hits * blockSizeTokens;
    const tokens = Math.min(sequence.length - cachedTokens, budget);
    const fresh = Math.ceil((cachedTokens + tokens) / blockSizeTokens) - hits;
    if (fresh + idleHits > this.#pool.freeBlocks) return 0;
    this.#takeBlocks(sequence, hits, fresh);
    sequence.computed = cachedTokens;
    if (sequence.scheduledAt === undefined) {
      sequence.cachedTokens = cachedTokens;
      this.prefixQueryTokens += sequence.promptLength;
      this.prefixHitTokens += cachedTokens;
    }
    return tokens;
  }

  /** Books a chunk into the step and makes the blocks that it fills findable. */
  #take(sequence: Sequence, tokens: number, scheduled: Sequence[], load: StepLoad): void {
    sequence.stepTokens = tokens;
    scheduled.push(sequence);
    if (tokens === 1 && sequence.computed >= sequence.promptLength) {
      load.addDecode(sequence.length);
    } else {
      load.addPrefill(tokens, sequence.computed);
    }
    if (this.#options.prefixCaching) this.#cacheFullBlocks(sequence, sequence.computed + tokens);
  }

  #cacheFullBlocks(sequence: Sequence, tokens: number): void {
    const { blockSizeTokens } = this.#options;
    const full = Math.floor(tokens / blockSizeTokens);
    const from = sequence.cachedBlocks;
    if (full <= from) return;
    sequence.hashUpTo(full, blockSizeTokens);
    const { hashes } = sequence;
    const { contents } = this.#options;
    const computedFrom = Math.floor(sequence.computed / blockSizeTokens);
    for (let i = from; i < full; i++) {
      const block = sequence.blocks[i] as number;
      const low = hashes[i * 2] as number;
      const high = hashes[i * 2 + 1] as number;
      this.#pool.cache(block, low, high);
      // What is computed after wrong KV is wrong as well. What was loaded has been written by the load.
      if (i >= computedFrom) contents?.write(block, (low ^ sequence.taint) >>> 0, high);
    }
    sequence.cachedBlocks = full;
    if (!this.#options.blockEvents) return;
    this.#events.push({
      kind: "stored",
      hashes: hashes.slice(from * 2, full * 2),
      parent: from === 0 ? undefined : hashes.slice(from * 2 - 2, from * 2),
      tokens: sequence.tokens.subarray(from * blockSizeTokens, full * blockSizeTokens),
      firstBlock: from,
      request: sequence.request,
    });
  }
}

/** Folds what one block holds wrongly into the sequence's account of it. */
export function addTaint(sequence: Sequence, taint: number): void {
  if (taint !== 0) sequence.taint = (Math.imul(sequence.taint, 31) ^ taint) | 1;
}
