import type { EngineCounters } from "../../../router/core/load/counter-delta.ts";
import type { HashRoot } from "../../../shared/core/block-hash.ts";
import { EngineCore } from "../engine/engine.ts";
import type {
  BlockEvent,
  EngineListener,
  EngineRequest,
  EngineSequence,
  SamplerState,
  TokenSampler,
} from "../engine/engine-types.ts";
import { MeshBlockHasher } from "../engine/mesh-block-hasher.ts";
import type { FleetEngineOptions } from "./fleet-options.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** Answers end by length alone; every request draws tokens of its own, so no answer is another's prefix. */
const ownTokens: TokenSampler = {
  endToken: -1,
  start: (_tokens, _length, seed): SamplerState => ({ a: seed | 0, b: 0 }),
  next: (state) => (Math.imul(state.a ^ 0x2545f491, 0x9e3779b1) + state.b++ * 0x61c88647) >>> 8,
};

/** What an engine tells of its work. */
export interface FleetEngineListener {
  /** Block events of a step that has begun. */
  blocks(events: readonly BlockEvent[]): void;
  /** A sequence got its first token. */
  firstToken(sequence: EngineSequence): void;
  /** A sequence ended by itself. */
  finished(sequence: EngineSequence): void;
}

/** An engine core on virtual time, with the counters that its metrics page would show. */
export class FleetEngine {
  readonly address: string;
  /** Lives so far, from 1. */
  life = 1;
  isDown = false;
  readonly #time: VirtualTime;
  readonly #options: FleetEngineOptions;
  readonly #root: HashRoot;
  readonly #listener: FleetEngineListener;
  readonly #lastTokenAt = new Map<string, number>();
  #core: EngineCore;
  #wakeAt: number | undefined;
  #finished = 0;
  #interTokenMs = 0;
  #interTokenCount = 0;

  constructor(
    options: FleetEngineOptions,
    deps: {
      readonly address: string;
      readonly time: VirtualTime;
      readonly root: HashRoot;
      readonly listener: FleetEngineListener;
    },
  ) {
    this.#options = options;
    this.address = deps.address;
    this.#time = deps.time;
    this.#root = deps.root;
    this.#listener = deps.listener;
    this.#core = this.#create();
  }

  /** The core of this life. */
  get core(): EngineCore {
    return this.#core;
  }

  /** Requests that run or wait. */
  get openCount(): number {
    const { runningSequences, waitingSequences } = this.#core.stats();
    return runningSequences + waitingSequences;
  }

  /** Takes a request now; errors are those of `EngineCore.submit`. */
  submit(request: EngineRequest): void {
    const { now } = this.#time;
    if (this.#core.stepEndsAt !== undefined) this.#core.advance(now, this.#steps);
    this.#core.submit(request, now);
    // Arrivals of one moment share the step that an idle engine begins.
    if (this.#core.stepEndsAt === undefined) {
      this.#wake(now);
    } else this.#wake(this.#core.stepEndsAt);
  }

  /** Makes steps take `factor` times as long from now on. */
  slow(factor: number): void {
    this.#core.setSlowFactor(factor);
  }

  /** Makes no step for `ms` and takes requests all the same, as a GPU that hangs. */
  freeze(ms: number): void {
    this.#core.stall(ms, this.#time.now);
  }

  /** The process dies: everything it held is gone, and nothing answers until `start`. */
  kill(): void {
    this.isDown = true;
    this.#core = this.#create();
    this.#wakeAt = undefined;
    this.#lastTokenAt.clear();
    this.#finished = 0;
    this.#interTokenMs = 0;
    this.#interTokenCount = 0;
  }

  /** A new life with an empty cache. */
  start(): void {
    this.isDown = false;
    this.life++;
  }

  /** What a reading of the metrics page gives now. */
  counters(): EngineCounters {
    const stats = this.#core.stats();
    return {
      running: stats.runningSequences,
      waiting: stats.waitingSequences,
      kvUsageRatio: stats.usableBlocks === 0 ? 0 : stats.referencedBlocks / stats.usableBlocks,
      prefixQueryTokens: stats.prefixQueryTokens,
      prefixHitTokens: stats.prefixHitTokens,
      promptTokens: stats.promptTokens,
      generatedTokens: stats.generatedTokens,
      finishedRequests: this.#finished,
      interTokenSecondsSum: this.#interTokenMs / 1_000,
      interTokenCount: this.#interTokenCount,
    };
  }

  #create(): EngineCore {
    const { blockSizeTokens } = this.#options;
    const root = this.#root;
    const blocks = Math.floor(this.#options.kvTokens / blockSizeTokens);
    return new EngineCore({
      model: this.#options.model,
      blockSizeTokens,
      // One block more than the tokens need: the null block.
      capacityBlocks: blocks + 1,
      contextTokensMax: Math.min(this.#options.contextTokensMax, blocks * blockSizeTokens),
      stepTokensMax: this.#options.stepTokensMax,
      runningMax: this.#options.runningMax,
      hasher: new MeshBlockHasher(blockSizeTokens, () => root),
      sampler: ownTokens,
    });
  }

  readonly #steps: EngineListener = {
    stepStarted: (step) => {
      if (step.events.length > 0) this.#listener.blocks(step.events);
    },
    stepEnded: (end) => {
      for (const sequence of end.advanced) {
        const { id } = sequence.request;
        const before = this.#lastTokenAt.get(id);
        if (before === undefined) this.#listener.firstToken(sequence);
        else {
          this.#interTokenMs += end.endedAt - before;
          this.#interTokenCount++;
        }
        this.#lastTokenAt.set(id, end.endedAt);
      }
      for (const sequence of end.finished) {
        this.#lastTokenAt.delete(sequence.request.id);
        this.#finished++;
        this.#listener.finished(sequence);
      }
    },
  };

  /** One wake-up at a time: those planned for a time that no longer holds do nothing. */
  #wake(at: number): void {
    if (this.#wakeAt !== undefined && this.#wakeAt <= at) return;
    this.#wakeAt = at;
    const core = this.#core;
    this.#time.at(at, () => {
      if (this.#wakeAt !== at || core !== this.#core) return;
      this.#wakeAt = undefined;
      const next = core.advance(this.#time.now, this.#steps);
      if (next !== undefined) this.#wake(next);
    });
  }
}
