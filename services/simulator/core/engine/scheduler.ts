import { invariant } from "../../../shared/core/invariant.ts";
import type { MonoMs } from "../../../shared/core/ids.ts";
import type { BlockPool } from "./block-pool.ts";
import type { BlockEvent } from "./engine-types.ts";
import type { Sequence } from "./sequence.ts";
import type { StepLoad } from "./step-time.ts";

/** Limits of the scheduler, resolved. */
export interface SchedulerOptions {
  readonly blockSizeTokens: number;
  readonly stepTokensMax: number;
  readonly runningMax: number;
  readonly prefixCaching: boolean;
  readonly blockEvents: boolean;
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
  preemptions = 0;
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
      if (sequence.submittedAt > visibleUntil) break;
      const tokens = this.#admit(sequence, budget);
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
    victim.state = "waiting";
    victim.preemptions++;
    this.waiting.unshift(victim);
    this.preemptions++;
    this.#preemptedInPlan = true;
  }

  /** Finds the cached prefix and takes blocks for the first chunk; returns its tokens, 0 for no room. */
  #admit(sequence: Sequence, budget: number): number {
    const { blockSizeTokens, prefixCaching } = this.#options;
    let hits = 0;
    let idleHits = 0;
    if (prefixCaching) {
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
    const cachedTokens = hits * blockSizeTokens;
    const tokens = Math.min(sequence.length - cachedTokens, budget);
    const fresh = Math.ceil((cachedTokens + tokens) / blockSizeTokens) - hits;
    if (fresh + idleHits > this.#pool.freeBlocks) return 0;
    for (let i = 0; i < hits; i++) {
      const low = sequence.hashes[i * 2] as number;
      const high = sequence.hashes[i * 2 + 1] as number;
      const block = this.#pool.find(low, high);
      this.#pool.touch(block);
      sequence.appendBlock(block);
    }
    for (let i = 0; i < fresh; i++) sequence.appendBlock(this.#pool.allocate());
    sequence.computed = cachedTokens;
    sequence.cachedBlocks = hits;
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
    for (let i = from; i < full; i++) {
      const block = sequence.blocks[i] as number;
      this.#pool.cache(block, hashes[i * 2] as number, hashes[i * 2 + 1] as number);
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
