import { hashBlocks, hashRoot, type HashRoot } from "../../../shared/core/block-hash.ts";
import { monoMs } from "../../../shared/core/ids.ts";
import { SeededRandom } from "../../../shared/core/random.ts";
import type { RequestHints } from "../../../router/core/admission/request-hints.ts";
import type { Decision } from "../../../router/core/decisions/decision.ts";
import type { EngineSequence } from "../engine/engine-types.ts";
import { FleetEngine } from "./fleet-engine.ts";
import {
  fleetHashSeed,
  fleetModel,
  fleetPool,
  noFaults,
  type FleetFaults,
  type FleetOptions,
} from "./fleet-options.ts";
import { FleetRouter } from "./fleet-router.ts";
import { FleetWorker } from "./fleet-worker.ts";
import { VirtualTime } from "./virtual-time.ts";

/** A request of a client. */
export interface FleetRequest {
  readonly index: number;
  readonly promptTokens: Uint32Array;
  readonly outputTokens: number;
  /** Who asks and what for; nothing in particular when absent. */
  readonly hints?: RequestHints;
  /** Router that it reaches; the next one in turn when absent. */
  readonly router?: number;
  /** Conversation that it belongs to, where the caller says so. */
  readonly session?: string;
}

/** How a request stands. */
export type FleetOutcome =
  /** Not answered yet. */
  | "open"
  | "answered"
  /** No router found a worker for it. */
  | "refused"
  /** Its engine died, or none of the endpoints named took it. */
  | "failed";

/** One request from beginning to end; times in ms of the run, NaN before they are known. */
export interface FleetRecord {
  readonly index: number;
  readonly tenant: string;
  readonly dueMs: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  outcome: FleetOutcome;
  /** Times that the request ended; more than one is a bug. */
  endings: number;
  decisionId: string;
  router: number;
  /** Engine that served it. */
  engine: number;
  predictedTtftMs: number;
  predictedCachedTokens: number;
  /** Time that it waited in its router, ms. */
  waitedMs: number;
  /** Why its router refused it; empty when it did not. */
  shedReason: string;
  firstTokenMs: number;
  endMs: number;
  cachedTokens: number;
}

const noHints: RequestHints = {
  tenant: "",
  priority: "",
  session: "",
  ttftMs: undefined,
  itlMs: undefined,
};

interface Open {
  readonly record: FleetRecord;
  readonly attempts: number;
}

/**
 * A whole mesh in one process: clients, production routers, production workers' cores and simulated engines, on
 * virtual time. The same options and calls give the same run.
 */
export class Fleet {
  readonly time = new VirtualTime();
  readonly options: FleetOptions;
  readonly routers: readonly FleetRouter[];
  readonly engines: readonly FleetEngine[];
  readonly workers: readonly FleetWorker[];
  readonly records: FleetRecord[] = [];
  /** Faults from now on. */
  faults: FleetFaults = noFaults;
  /** Called after every decision, before the request leaves. */
  onDecision: ((decision: Decision, record: FleetRecord, hashes: Uint32Array) => void) | undefined;
  readonly #root: HashRoot;
  readonly #random: SeededRandom;
  /** Requests at an engine, by request id. */
  readonly #open: Map<string, Open>[];
  #calls = 0;
  #turn = 0;

  constructor(options: FleetOptions) {
    this.options = options;
    const random = new SeededRandom(options.seed);
    this.#random = random.fork("fleet");
    this.#root = hashRoot(fleetHashSeed, { model: fleetModel });
    const { time } = this;
    this.routers = Array.from({ length: options.routers }, (_, i) => {
      const instance = `router-${i}`;
      return new FleetRouter({ instance, time, options, random: random.fork(instance) });
    });
    this.#open = Array.from({ length: options.engines }, () => new Map<string, Open>());
    this.engines = Array.from(
      { length: options.engines },
      (_, i) =>
        new FleetEngine(options.engine, {
          address: `10.0.${i >>> 8}.${i & 255}:8000`,
          time,
          root: this.#root,
          listener: {
            blocks: (events) => (this.workers[i] as FleetWorker).blocks(events),
            firstToken: (sequence) => this.#firstToken(i, sequence),
            finished: (sequence) => this.#finished(i, sequence),
          },
        }),
    );
    this.workers = this.engines.map(
      (engine, i) =>
        new FleetWorker({
          workerId: `engine-${i}`,
          time,
          random: random.fork(`worker-${i}`),
          engine,
          routers: this.routers,
          options,
          faults: () => this.faults,
          nextCall: () => ++this.#calls,
        }),
    );
    for (const router of this.routers) router.start(this.routers);
    const apart = options.delays.reportEveryMs / options.engines;
    for (const [i, worker] of this.workers.entries()) worker.start(Math.round(apart * i));
    // Snapshots of empty engines are there before the first request may come.
    time.runUntil(50);
  }

  /** Plans a request of a client for `dueMs`. */
  request(dueMs: number, make: () => FleetRequest): void {
    this.time.at(dueMs, () => {
      const request = make();
      const record: FleetRecord = {
        index: request.index,
        tenant: request.hints?.tenant ?? "",
        dueMs,
        promptTokens: request.promptTokens.length,
        outputTokens: request.outputTokens,
        outcome: "open",
        endings: 0,
        decisionId: "",
        router: request.router ?? this.#turn++ % this.routers.length,
        engine: -1,
        predictedTtftMs: NaN,
        predictedCachedTokens: 0,
        waitedMs: 0,
        shedReason: "",
        firstTokenMs: NaN,
        endMs: NaN,
        cachedTokens: 0,
      };
      this.records.push(record);
      this.time.after(this.options.delays.placeMs, () => this.#place(request, record));
    });
  }

  /** Kills an engine and starts it again, empty, after `downMs`; its worker says so to every router. */
  restartEngine(index: number, downMs: number): void {
    const engine = this.engines[index];
    const worker = this.workers[index];
    const open = this.#open[index];
    if (engine === undefined || worker === undefined || open === undefined || engine.isDown) return;
    engine.kill();
    const lost = [...open.values()];
    open.clear();
    for (const { record, attempts } of lost) {
      this.#end(record, "failed");
      this.#log(record, { status: 503, attempts });
    }
    this.time.after(downMs, () => {
      engine.start();
      worker.engineRestarted();
    });
  }

  /** Requests at an engine or on the way to it, as a book that hears everything at once would count. */
  openAt(engine: number): number {
    return this.#open[engine]?.size ?? 0;
  }

  /** Requests that have no end yet. */
  get openCount(): number {
    let count = 0;
    for (const record of this.records) if (record.outcome === "open") count++;
    return count;
  }

  #place(request: FleetRequest, record: FleetRecord): void {
    const { promptTokens, outputTokens } = request;
    const router = this.routers[record.router] as FleetRouter;
    const hashes = hashBlocks(this.#root, promptTokens, this.options.meshBlockSizeTokens);
    const input = {
      requestId: `request-${request.index}`,
      pool: fleetPool,
      model: fleetModel,
      promptTokens: promptTokens.length,
      hashes,
      tokensMax: this.options.tellsTokensMax ? outputTokens : undefined,
      session: request.session ?? "",
      answer: "stream" as const,
      loadOnlyReason: "",
      subset: undefined,
      dryRun: false,
      unixUs: 0,
    };
    const decided = (decision: Decision): void => this.#decided(request, record, decision, hashes);
    if (this.options.admission === undefined) decided(router.place(input));
    else router.placeInTurn({ input, hints: request.hints ?? noHints, bytes: 0, decided });
  }

  #decided(
    request: FleetRequest,
    record: FleetRecord,
    decision: Decision,
    hashes: Uint32Array,
  ): void {
    this.onDecision?.(decision, record, hashes);
    const [chosen] = decision.candidates;
    record.waitedMs = decision.admission?.waitedMs ?? 0;
    record.shedReason = decision.admission?.shedReason ?? "";
    if (decision.outcome.kind !== "placed" || chosen === undefined) {
      this.#end(record, "refused");
      return;
    }
    record.decisionId = decision.id;
    record.predictedTtftMs = chosen.predictedTtftMs;
    record.predictedCachedTokens = chosen.matchedTokens;
    this.time.after(this.options.delays.dispatchMs, () => {
      this.#dispatch(request, record, decision.endpoints);
    });
  }

  /** Tries the endpoints in order, as the proxy does when one does not take the connection. */
  #dispatch(request: FleetRequest, record: FleetRecord, endpoints: readonly string[]): void {
    let attempts = 0;
    for (const endpoint of endpoints) {
      attempts++;
      const index = this.engines.findIndex((engine) => engine.address === endpoint);
      const engine = this.engines[index];
      if (engine === undefined || engine.isDown) continue;
      record.engine = index;
      const id = record.decisionId;
      this.#open[index]?.set(id, { record, attempts });
      engine.submit({
        id,
        promptTokens: request.promptTokens,
        outputTokensMax: request.outputTokens,
        seed: record.index,
        ignoreEnd: true,
      });
      return;
    }
    this.#end(record, "failed");
    this.#log(record, { status: 503, attempts });
  }

  #firstToken(engine: number, sequence: EngineSequence): void {
    const open = this.#open[engine]?.get(sequence.request.id);
    if (open === undefined) return;
    open.record.firstTokenMs = sequence.firstTokenAt ?? NaN;
    open.record.cachedTokens = sequence.cachedTokens;
    // Peers that sit in the path of answers see it; ours does not look.
    this.routers[open.record.router]?.core.firstToken(open.record.decisionId);
  }

  #finished(engine: number, sequence: EngineSequence): void {
    const open = this.#open[engine]?.get(sequence.request.id);
    if (open === undefined) return;
    this.#open[engine]?.delete(sequence.request.id);
    open.record.endMs = sequence.lastTokenAt ?? NaN;
    this.#end(open.record, "answered");
    this.#log(open.record, { status: 200, attempts: open.attempts });
  }

  #end(record: FleetRecord, outcome: FleetOutcome): void {
    record.outcome = outcome;
    record.endings++;
    if (outcome !== "answered") record.endMs = this.time.now;
  }

  /** The proxy's access log goes to any router; the one that decided hears of it. */
  #log(record: FleetRecord, { status, attempts }: { status: number; attempts: number }): void {
    if (this.#random.next() < this.faults.accessLogLossRatio) return;
    const decidedAt = record.dueMs + this.options.delays.placeMs;
    const served = {
      // The proxy's clock starts when the request is complete and stops at the answer's first byte.
      ttftMs: Number.isNaN(record.firstTokenMs) ? 0 : record.firstTokenMs - decidedAt,
      durationMs: monoMs(record.endMs - decidedAt),
      servedEndpoint: this.engines[record.engine]?.address ?? "",
      status,
      responseFlags: status === 200 ? "" : "UC",
      attempts,
      responseBytes: 0,
    };
    this.time.after(this.options.delays.accessLogMs, () => {
      this.routers[record.router]?.served(record.decisionId, served);
    });
  }
}
