import { CounterWindow, workDone } from "../../../router/core/load/counter-delta.ts";
import type { MemberFacts } from "../../../router/core/membership/member.ts";
import type { AdmittedRequest } from "../../../router/core/admission/admitted-request.ts";
import type { ServedRecord } from "../../../router/core/load/request-ends.ts";
import type { PlaceInput } from "../../../router/core/placement/place-input.ts";
import { RouterCore } from "../../../router/core/router-core.ts";
import type { Decision } from "../../../router/core/decisions/decision.ts";
import { monoMs, workerId, type MonoMs, type WorkerId } from "../../../shared/core/ids.ts";
import type { SeededRandom } from "../../../shared/core/random.ts";
import type { JoinInput, JoinOutput } from "../../../worker/core/join-stream.ts";
import { fleetHashSeed, fleetModel, fleetPool, type FleetOptions } from "./fleet-options.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** Facts of a worker that change from one hello to the next. */
export interface JoinFacts {
  readonly workerId: string;
  readonly endpoint: string;
  readonly engineLife: number;
  readonly ready: boolean;
  readonly startedAt: MonoMs;
}

interface Call {
  readonly reply: (input: JoinInput) => void;
  key: WorkerId | undefined;
  readonly window: CounterWindow;
}

/** How often a router ends what has run out, ms. */
const tickMs = 250;
/** How often routers tell each other what waits at them, ms. */
const demandEveryMs = 50;

/** What a router needs. */
export interface FleetRouterDeps {
  readonly instance: string;
  readonly time: VirtualTime;
  readonly random: SeededRandom;
  readonly options: FleetOptions;
}

/** A production router core on virtual time, with the message handling of its edges. */
export class FleetRouter {
  readonly instance: string;
  readonly core: RouterCore;
  readonly #d: FleetRouterDeps;
  readonly #calls = new Map<number, Call>();
  #wakeAt = Infinity;
  readonly #peers: { readonly router: FleetRouter; readyAt: number }[] = [];
  /** Answers to block messages that asked for a snapshot. */
  resyncCount = 0;
  /** Reservations closed, by reason. */
  readonly closedBy = new Map<string, number>();

  constructor(deps: FleetRouterDeps) {
    this.#d = deps;
    this.instance = deps.instance;
    const { options } = deps;
    const blocksPerEngine = Math.ceil(options.engine.kvTokens / options.meshBlockSizeTokens);
    this.core = new RouterCore({
      decisionPrefix: `${deps.instance}.1`,
      blockSizeTokens: options.meshBlockSizeTokens,
      policy: options.policy,
      graceMs: options.graceMs,
      membersMax: Math.max(16, options.engines),
      blocksMax: Math.max(1_024, blocksPerEngine * options.engines * 2),
      reservationsMax: 100_000,
      decisionsMax: 10_000,
      outputTokensDefault: 256,
      fallbacksMax: 3,
      ...(options.preference === undefined ? {} : { preference: options.preference }),
      ...(options.admission === undefined ? {} : { admission: options.admission }),
      ...(options.rooms === undefined ? {} : { rooms: options.rooms }),
    });
  }

  /** Connects the routers with each other and begins to tick. */
  start(peers: readonly FleetRouter[]): void {
    for (const router of peers) if (router !== this) this.#peers.push({ router, readyAt: 0 });
    this.#tick();
    if (this.#d.options.admission !== undefined) this.#tellDemand();
  }

  /** A worker has dialled. */
  opened(call: number, reply: (input: JoinInput) => void): void {
    this.#calls.set(call, { reply, key: undefined, window: new CounterWindow() });
    reply({
      kind: "challenge",
      challenge: {
        protocolVersion: 1,
        routerInstance: this.instance,
        routerEpoch: 1n,
        nonce: new Uint8Array(16),
        blockSizeTokens: this.#d.options.meshBlockSizeTokens,
        hashSeedFingerprint: fleetHashSeed,
      },
    });
  }

  /** A worker's stream is gone. */
  ended(call: number): void {
    if (!this.#calls.delete(call)) return;
    this.core.streamLost(call, this.#d.time.now);
    this.settle();
  }

  /** A message of a worker. */
  receive(callId: number, output: JoinOutput, facts: JoinFacts | undefined): void {
    const call = this.#calls.get(callId);
    if (call === undefined) return;
    const { now } = this.#d.time;
    if (output.kind === "hello" && facts !== undefined) {
      const { replacedStream } = this.core.admit(this.#memberFacts(facts), callId, now);
      if (replacedStream !== undefined) this.#calls.delete(replacedStream);
      call.key = workerId(facts.workerId);
      call.reply({ kind: "accepted" });
    } else if (call.key !== undefined) this.#dispatch(call, call.key, output);
    this.settle();
  }

  /** Decides on a request now. */
  place(input: PlaceInput): Decision {
    const decision = this.core.place(input, this.#d.time.now);
    this.settle();
    return decision;
  }

  /** Decides on a request when its turn comes. */
  placeInTurn(request: AdmittedRequest): void {
    this.core.placeInTurn(request, this.#d.time.now);
    this.settle();
  }

  /** An access-log record. */
  served(decisionId: string, record: ServedRecord): void {
    this.core.served(decisionId, record, this.#d.time.now);
    this.settle();
  }

  /** Carries out what the core wants done. */
  settle(): void {
    this.#pump();
    for (const effect of this.core.takeEffects()) {
      switch (effect.kind) {
        case "reserved": {
          const { decision, uncachedTokens } = effect;
          const { id, workerId: worker, promptTokens, expectedOutputTokens } = decision;
          const decidedAt = this.#d.time.now;
          if (worker === undefined) break;
          this.#tell((peer) => {
            peer.core.peerReserved(
              {
                decisionId: id,
                workerId: worker,
                promptTokens,
                uncachedTokens,
                expectedOutputTokens,
                ageMs: this.#d.time.now - decidedAt,
              },
              this.#d.time.now,
            );
          });
          break;
        }
        case "closed": {
          const { decisionId } = effect.closed.reservation;
          const { reason } = effect.closed;
          this.closedBy.set(reason, (this.closedBy.get(reason) ?? 0) + 1);
          this.#tell((peer) => peer.core.peerClosed(decisionId, this.#d.time.now));
          break;
        }
        case "member_changed":
        case "member_left": {
          const { member } = effect;
          const goodbye = effect.kind === "member_left" && effect.goodbye;
          if (effect.kind === "member_left" && !goodbye) break;
          // What a peer said is not said again, or three routers would never fall silent.
          if (effect.kind === "member_changed" && !effect.tellPeers) break;
          const notice = {
            workerId: member.workerId,
            dpRank: member.dpRank,
            epoch: member.epoch,
            pool: member.pool,
            endpoint: member.endpoint,
            models: member.models,
            held: member.streamId !== undefined,
            ready: member.ready,
            goodbye,
          };
          this.#tell((peer) => peer.core.notice(this.instance, notice, this.#d.time.now));
          break;
        }
      }
    }
  }

  /** Decides what has waited long enough, and plans to look again when the core asks for it. */
  #pump(): void {
    const { time } = this.#d;
    this.core.pump(time.now);
    const at = this.core.wakeAt(time.now);
    if (at === undefined) return;
    // A real router's timers are no finer than this.
    const wakeAt = Math.max(at, time.now + 1);
    if (wakeAt >= this.#wakeAt) return;
    this.#wakeAt = wakeAt;
    time.at(wakeAt, () => {
      if (this.#wakeAt !== wakeAt) return;
      this.#wakeAt = Infinity;
      this.settle();
    });
  }

  #tellDemand(): void {
    const { time } = this.#d;
    for (const { pool, tenants } of this.core.demand(time.now)) {
      this.#tell((peer) => {
        peer.core.takePeerDemand(this.instance, pool, tenants, time.now);
      });
    }
    time.after(demandEveryMs, () => this.#tellDemand());
  }

  #tick(): void {
    this.core.tick(this.#d.time.now);
    this.settle();
    this.#d.time.after(tickMs, () => this.#tick());
  }

  #dispatch(call: Call, key: WorkerId, output: JoinOutput): void {
    const { now } = this.#d.time;
    switch (output.kind) {
      case "snapshot": {
        const { baseSeq, hashes, last, digestLo, digestHi, blockCount } = output.chunk;
        const part = { baseSeq, hashes, last, xorLo: digestLo, xorHi: digestHi, blockCount };
        const outcome = this.core.snapshot(key, part, now);
        if (outcome.kind === "applied") this.#ack(call, key);
        if (outcome.kind === "resync") this.#resync(call);
        return;
      }
      case "delta": {
        const { seq, change } = output;
        const outcome = this.core.delta(key, { seq, ...change }, now);
        if (outcome.kind === "resync") this.#resync(call);
        return;
      }
      case "load": {
        const { sample, sampleAgeMs } = output;
        const capacityTokens = this.core.members.get(key)?.facts?.capacityTokens ?? 0;
        const { running, waiting, kvUsageRatio } = sample;
        const at = monoMs(now - sampleAgeMs);
        const delta = call.window.take(sample, at, capacityTokens);
        const report = { running, waiting, kvUsageRatio, workDone: workDone(sample), at };
        this.core.report(key, report, delta);
        this.#ack(call, key);
        return;
      }
      case "state":
        this.core.setReady(key, output.ready);
        return;
      case "goodbye":
        this.core.goodbye(key);
        return;
      case "hello":
      case "artifact":
        return;
    }
  }

  #resync(call: Call): void {
    this.resyncCount++;
    call.reply({ kind: "resync" });
  }

  #ack(call: Call, key: WorkerId): void {
    call.reply({ kind: "ack", appliedSeq: this.core.members.get(key)?.appliedSeq ?? 0 });
  }

  /** Messages to one peer arrive in the order in which they were sent. */
  #tell(apply: (peer: FleetRouter) => void): void {
    const { time, random, options } = this.#d;
    const [least, most] = options.delays.peerMs;
    for (const peer of this.#peers) {
      peer.readyAt = Math.max(peer.readyAt, time.now + least + (most - least) * random.next());
      time.at(peer.readyAt, () => {
        apply(peer.router);
        peer.router.settle();
      });
    }
  }

  #memberFacts(facts: JoinFacts): MemberFacts {
    const { engine, announcedModel } = this.#d.options;
    return {
      workerId: facts.workerId,
      dpRank: 0,
      epoch: { workerStartMs: facts.startedAt, engineLife: facts.engineLife },
      pool: fleetPool,
      endpoint: facts.endpoint,
      role: "both",
      models: [fleetModel],
      contextTokensMax: engine.contextTokensMax,
      tokenizerSha256: "",
      chatTemplateSha256: "",
      addsSpecialTokens: false,
      bosToken: "",
      eosToken: "",
      engineBlockSizeTokens: engine.blockSizeTokens,
      capacityTokens: Math.floor(engine.kvTokens / engine.blockSizeTokens) * engine.blockSizeTokens,
      prefixCaching: true,
      engineName: "simulator",
      engineVersion: "",
      // A worker cannot read this from an engine, so routers assume its default.
      stepTokensMax: 0,
      stepModel: announcedModel,
      ready: facts.ready,
    };
  }
}
