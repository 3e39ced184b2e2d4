import { monoMs } from "../../../shared/core/ids.ts";
import type { SeededRandom } from "../../../shared/core/random.ts";
import { BlockMap } from "../../../worker/core/block-map.ts";
import {
  defaultJoinLimits,
  JoinStream,
  type JoinInput,
  type JoinMember,
  type JoinOutput,
} from "../../../worker/core/join-stream.ts";
import type { KvEvent } from "../../../worker/core/kv-events/kv-event.ts";
import type { BlockEvent } from "../engine/engine-types.ts";
import type { FleetEngine } from "./fleet-engine.ts";
import { fleetHashSeed, fleetModel, type FleetFaults, type FleetOptions } from "./fleet-options.ts";
import type { JoinFacts, FleetRouter } from "./fleet-router.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** How often a link looks whether something is due, ms. */
const tickMs = 100;
/** Pause before a lost stream is dialled again, ms: the least and the most. */
const redialMs: readonly [number, number] = [100, 400];

interface Link {
  readonly router: FleetRouter;
  readonly stream: JoinStream;
  /** Id of the call that is up; 0 when none is. */
  call: number;
  /** When the last message sent will be there: messages of one call do not overtake each other. */
  readyAt: number;
}

/** What a worker needs. */
export interface FleetWorkerDeps {
  readonly workerId: string;
  readonly time: VirtualTime;
  readonly random: SeededRandom;
  readonly engine: FleetEngine;
  readonly routers: readonly FleetRouter[];
  readonly options: FleetOptions;
  readonly faults: () => FleetFaults;
  /** Next id of a call, over the whole fleet. */
  readonly nextCall: () => number;
}

/**
 * A worker on virtual time: the production block map and one production join stream to each router, with
 * delays and faults between them.
 */
export class FleetWorker {
  readonly workerId: string;
  readonly engine: FleetEngine;
  readonly #d: FleetWorkerDeps;
  readonly #map: BlockMap;
  readonly #links: Link[];
  readonly #exact: boolean;
  #eventsReadyAt = 0;
  #eventsWaiting = 0;
  /** Batches of an earlier life that are still under way do not count. */
  #life = 1;

  constructor(deps: FleetWorkerDeps) {
    this.#d = deps;
    this.workerId = deps.workerId;
    this.engine = deps.engine;
    const { options } = deps;
    this.#exact = options.view === "exact";
    const { blockSizeTokens, kvTokens } = options.engine;
    this.#map = new BlockMap({
      engineBlockSizeTokens: blockSizeTokens,
      meshBlockSizeTokens: options.meshBlockSizeTokens,
      engineBlocksMax: Math.floor(kvTokens / blockSizeTokens) * 2,
      hashSeed: fleetHashSeed,
      model: fleetModel,
      sink: {
        stored: (lo, hi) => {
          for (const { stream } of this.#links) stream.stored(lo, hi);
        },
        removed: (lo, hi) => {
          for (const { stream } of this.#links) stream.removed(lo, hi);
        },
        cleared: () => {
          for (const { stream } of this.#links) stream.cleared();
        },
      },
    });
    const member: JoinMember = {
      hashSeedFingerprint: fleetHashSeed,
      agreeBlockSize: () => undefined,
      meshHashes: () => this.#map.meshHashes(),
      isReady: () => ({ ready: !this.engine.isDown, reason: "" }),
      artifactSize: () => undefined,
    };
    this.#links = deps.routers.map((router) => ({
      router,
      stream: new JoinStream(member, defaultJoinLimits),
      call: 0,
      readyAt: 0,
    }));
  }

  /** Dials every router and begins to read the engine's counters. `phaseMs` keeps workers apart. */
  start(phaseMs: number): void {
    for (const link of this.#links) this.#dial(link);
    this.#d.time.after(phaseMs, () => this.#read());
    this.#d.time.after(phaseMs % tickMs, () => this.#tick());
  }

  /** Mesh blocks that the worker knows its engine to hold, (lo, hi) pairs. */
  meshHashes(): Uint32Array {
    return this.#map.meshHashes();
  }

  /** Mesh blocks held. */
  get meshBlockCount(): number {
    return this.#map.meshBlockCount;
  }

  /** Whether every stream is up, nothing is under way on it and its router has acknowledged everything. */
  get isQuiet(): boolean {
    return (
      this.#eventsWaiting === 0 &&
      this.#links.every(
        (link) =>
          link.stream.phase === "live" &&
          link.stream.pendingBlockCount === 0 &&
          link.stream.unackedCount === 0 &&
          link.readyAt <= this.#d.time.now,
      )
    );
  }

  /** Block events of a step of the engine. */
  blocks(events: readonly BlockEvent[]): void {
    const life = this.engine.life;
    const taken = events.map((event) => this.#toKvEvent(event));
    if (this.#exact) {
      this.#apply(taken, life);
      return;
    }
    const [least, most] = this.#d.options.delays.eventMs;
    const lag = least + (most - least) * this.#d.random.next();
    this.#eventsReadyAt = Math.max(this.#eventsReadyAt, this.#d.time.now + lag);
    this.#eventsWaiting++;
    this.#d.time.at(this.#eventsReadyAt, () => {
      this.#eventsWaiting--;
      this.#apply(taken, life);
    });
  }

  /** The engine is in another life: its blocks are gone and every router is told by a new hello. */
  engineRestarted(): void {
    this.#life = this.engine.life;
    this.#map.forget();
    for (const link of this.#links) {
      this.#drop(link);
      this.#dial(link);
    }
  }

  /** Breaks the stream to one router; it is dialled again after a pause, or after `forMs`. */
  cut(routerIndex: number, forMs?: number): void {
    const link = this.#links[routerIndex];
    if (link === undefined || link.call === 0) return;
    this.#drop(link);
    const [least, most] = redialMs;
    const pause = forMs ?? least + (most - least) * this.#d.random.next();
    this.#d.time.after(pause, () => {
      if (link.call === 0) this.#dial(link);
    });
  }

  #toKvEvent(event: BlockEvent): KvEvent {
    switch (event.kind) {
      case "stored":
        return {
          kind: "stored",
          hashes: event.hashes,
          hasParent: event.parent !== undefined,
          parentLo: event.parent?.[0] ?? 0,
          parentHi: event.parent?.[1] ?? 0,
          tokens: event.tokens.slice(),
          blockSizeTokens: this.#d.options.engine.blockSizeTokens,
          bigram: false,
          loraId: undefined,
          loraName: undefined,
          medium: "GPU",
          locality: undefined,
          extraKeys: undefined,
          groupIndex: 0,
          specKind: undefined,
        };
      case "removed":
        return {
          kind: "removed",
          hashes: Uint32Array.of(event.low, event.high),
          medium: "GPU",
          locality: undefined,
          groupIndex: 0,
        };
      case "cleared":
        return { kind: "cleared" };
    }
  }

  #apply(events: readonly KvEvent[], life: number): void {
    if (life !== this.#life) return;
    for (const event of events) this.#map.apply(event);
    for (const link of this.#links) link.stream.eventsApplied(this.#d.time.now);
    this.#pumpAll();
  }

  #read(): void {
    const { time, options } = this.#d;
    if (!this.engine.isDown) {
      const counters = this.engine.counters();
      const sample = { ...counters, preemptions: 0, prefillSecondsSum: 0, prefillCount: 0 };
      for (const { stream } of this.#links) stream.sampled(sample, time.now);
      this.#pumpAll();
    }
    time.after(options.delays.reportEveryMs, () => this.#read());
  }

  #tick(): void {
    for (const [index, link] of this.#links.entries()) {
      if (link.call !== 0 && link.stream.tick(this.#d.time.now) !== undefined) this.cut(index);
    }
    this.#pumpAll();
    this.#d.time.after(tickMs, () => this.#tick());
  }

  #dial(link: Link): void {
    const call = this.#d.nextCall();
    link.call = call;
    link.readyAt = this.#d.time.now;
    link.stream.step({ kind: "opened" }, this.#d.time.now);
    link.router.opened(call, (input) => this.#deliver(link, call, input));
  }

  #drop(link: Link): void {
    if (link.call === 0) return;
    const { call } = link;
    link.call = 0;
    link.stream.step({ kind: "ended" }, this.#d.time.now);
    this.#d.time.after(this.#d.options.delays.joinMs, () => link.router.ended(call));
  }

  /** What a router says arrives after the same delay, in order. */
  #deliver(link: Link, call: number, input: JoinInput): void {
    this.#d.time.after(this.#exact ? 0 : this.#d.options.delays.joinMs, () => {
      if (link.call !== call) return;
      const end = link.stream.step(input, this.#d.time.now);
      if (end !== undefined) this.cut(this.#links.indexOf(link));
      else this.#pump(link);
    });
  }

  #pumpAll(): void {
    for (const link of this.#links) this.#pump(link);
  }

  #pump(link: Link): void {
    const { time } = this.#d;
    while (link.call !== 0) {
      const output = link.stream.next({ now: time.now, wallUnixMs: time.now });
      if (output === undefined) return;
      this.#send(link, output);
    }
  }

  #send(link: Link, output: JoinOutput): void {
    const { time, options, random } = this.#d;
    const { call, router } = link;
    const facts = output.kind === "hello" ? this.#facts() : undefined;
    const deliver = (): void => router.receive(call, output, facts);
    if (this.#exact) {
      deliver();
      return;
    }
    link.readyAt = Math.max(link.readyAt, time.now + options.delays.joinMs);
    const faults = this.#d.faults();
    if (output.kind === "delta" && random.next() < faults.deltaLossRatio) return;
    if (output.kind === "delta" && random.next() < faults.deltaReorderRatio) {
      // Late by itself: what was sent after it is there before.
      time.at(link.readyAt + random.next() * faults.deltaDelayMs, deliver);
    } else time.at(link.readyAt, deliver);
    if (output.kind === "delta" && random.next() < faults.deltaRepeatRatio) {
      time.at(link.readyAt + random.next() * faults.deltaDelayMs, deliver);
    }
  }

  #facts(): JoinFacts {
    return {
      workerId: this.workerId,
      endpoint: this.engine.address,
      engineLife: this.engine.life,
      ready: !this.engine.isDown,
      startedAt: monoMs(1),
    };
  }
}
