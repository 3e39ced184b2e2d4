import { status, type ClientDuplexStream, type StatusObject } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Backoff } from "../../shared/core/backoff.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { createChannelCredentials, createChannelOptions } from "../../shared/edge/grpc-client.ts";
import { joinProof, type NamedKey } from "../../shared/edge/keys.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import {
  MembershipClient,
  type JoinRequest,
  type JoinResponse,
} from "../../shared/gen/kvmesh/worker/v1/worker.ts";
import { ClockOffset } from "../core/clock-offset.ts";
import { refusalOfEnd, type JoinRefusal } from "../core/join-refusal.ts";
import { JoinStream, type JoinEnd, type JoinLimits, type JoinMember } from "../core/join-stream.ts";
import type { workerMetrics } from "../metrics.ts";
import { toHello, toJoinInput, toJoinRequest, type HelloFacts } from "./join-wire.ts";

/** State of a link as metrics and health show it. */
export type LinkState = "disconnected" | "joining" | "member" | "refused";

/** How one stream ended. */
type SessionEnd =
  | { readonly kind: "refused"; readonly refusal: JoinRefusal }
  | { readonly kind: "fault"; readonly outcome: string; readonly message: string }
  /** On purpose, to say hello again at once. */
  | { readonly kind: "restart" }
  | { readonly kind: "left" };

/** The member for which a link speaks. */
export interface LinkMember extends JoinMember {
  helloFacts(): HelloFacts;
}

/** What a link needs. */
export interface RouterLinkOptions {
  /** host:port of the router's control port. */
  readonly target: string;
  readonly member: LinkMember;
  readonly joinKey: NamedKey;
  readonly limits: JoinLimits;
  /** After faults, and after refusals that a person must mend. */
  readonly backoff: Backoff;
  readonly refusedBackoff: Backoff;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof workerMetrics>;
}

const tickMs = 100;
const goodbyeMsMax = 1_000;

/** Keeps one worker a member at one router: dials, answers the challenge, streams, and dials again. */
export class RouterLink {
  readonly target: string;
  readonly stream: JoinStream;
  readonly #options: RouterLinkOptions;
  readonly #client: MembershipClient;
  readonly #stop = new AbortController();
  readonly #offset = new ClockOffset();
  #call: ClientDuplexStream<JoinRequest, JoinResponse> | undefined;
  #end: ((end: SessionEnd) => void) | undefined;
  #leaving = false;
  #state: LinkState = "disconnected";
  #lastProblem = "";
  #sawSnapshots = 0;

  constructor(options: RouterLinkOptions) {
    this.target = options.target;
    this.#options = options;
    this.stream = new JoinStream(options.member, options.limits);
    this.#client = new MembershipClient(
      options.target,
      createChannelCredentials(),
      createChannelOptions(),
    );
  }

  get state(): LinkState {
    return this.#state;
  }

  /** Runs until `leave` or `close`. */
  async run(): Promise<void> {
    const { clock, backoff, refusedBackoff, metrics } = this.#options;
    while (!this.#stop.signal.aborted) {
      const end = await this.#session();
      this.#state = end.kind === "refused" ? "refused" : "disconnected";
      metrics.joins.inc({ outcome: outcomeOf(end) });
      this.#report(end);
      if (end.kind === "left") return;
      if (end.kind === "restart") continue;
      const pauseMs = end.kind === "refused" ? refusedBackoff.next() : backoff.next();
      await clock.sleep(pauseMs, this.#stop.signal).catch(() => undefined);
    }
  }

  /** Sends what is due, as far as the router reads. */
  pump(): void {
    const call = this.#call;
    const { clock, metrics } = this.#options;
    while (call !== undefined && call === this.#call && !this.stream.isBlocked) {
      const nowUnixUs = clock.wallUnixUs();
      const output = this.stream.next({ now: clock.now(), wallUnixMs: nowUnixUs / 1_000 });
      if (output === undefined) break;
      metrics.messages.inc({ kind: output.kind });
      const request =
        output.kind === "hello"
          ? this.#hello(output.nonce)
          : toJoinRequest(output, {
              artifacts: this.#options.member.helloFacts().artifacts,
              nowUnixUs,
            });
      if (!call.write(request)) this.stream.setWritable(false, clock.now());
      if (output.kind === "goodbye") call.end();
    }
    this.#countSnapshots();
  }

  /** The engine is in another life: ends the stream and says hello again at once. */
  restart(): void {
    this.#end?.({ kind: "restart" });
  }

  /** Says goodbye, waits until it is sent or for one second, and ends. */
  async leave(reason: string): Promise<void> {
    const { clock } = this.#options;
    const call = this.#call;
    this.#leaving = true;
    this.stream.step({ kind: "leave", reason }, clock.now());
    // A stream that never got as far as a hello has nothing to say goodbye to.
    if (call !== undefined && this.stream.phase === "leaving") {
      const ended = new Promise<void>((resolve) => {
        call.once("status", () => {
          resolve();
        });
      });
      this.pump();
      await Promise.race([ended, clock.sleep(goodbyeMsMax)]);
    }
    this.close();
  }

  /** Ends at once. */
  close(): void {
    this.#leaving = true;
    this.#stop.abort();
    this.#end?.({ kind: "left" });
    this.#client.close();
    const { metrics } = this.#options;
    for (const gauge of [metrics.unackedDeltas, metrics.pendingBlocks, metrics.clockOffset]) {
      gauge.remove({ router: this.target });
    }
  }

  /** Refreshes the gauges of this link. */
  observe(): void {
    const { metrics } = this.#options;
    const labels = { router: this.target };
    metrics.unackedDeltas.set(labels, this.stream.unackedCount);
    metrics.pendingBlocks.set(labels, this.stream.pendingBlockCount);
    const best = this.#offset.best();
    if (best !== undefined) metrics.clockOffset.set(labels, best.offsetUs / 1e6);
  }

  async #session(): Promise<SessionEnd> {
    const { clock } = this.#options;
    const ended = new Promise<SessionEnd>((resolve) => {
      this.#end = resolve;
    });
    const call = this.#client.join();
    this.#call = call;
    this.#state = "joining";
    this.stream.step({ kind: "opened" }, clock.now());
    call.on("data", (response: JoinResponse) => {
      if (call === this.#call) this.#receive(response);
    });
    call.on("drain", () => {
      if (call !== this.#call) return;
      this.stream.setWritable(true, clock.now());
      this.pump();
    });
    // The status event says it all; without this listener an error would be thrown.
    call.on("error", () => undefined);
    call.on("status", (ending: StatusObject) => {
      if (call === this.#call) this.#end?.(this.#endOf(ending));
    });
    const ticking = new AbortController();
    void this.#tick(ticking.signal);
    const end = await ended;
    ticking.abort();
    this.#call = undefined;
    this.#end = undefined;
    this.stream.step({ kind: "ended" }, clock.now());
    call.cancel();
    return end;
  }

  async #tick(signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    for (;;) {
      try {
        await clock.sleep(tickMs, signal);
      } catch {
        return;
      }
      const end = this.stream.tick(clock.now());
      if (end !== undefined) this.#endWith(end);
      else this.pump();
    }
  }

  #receive(response: JoinResponse): void {
    const { clock, backoff, refusedBackoff, log } = this.#options;
    const input = toJoinInput(response);
    if (input === undefined) return;
    if (response.message?.$case === "ack") {
      const { echoUnixUs, routerUnixUs } = response.message.value;
      if (echoUnixUs > 0n) {
        this.#offset.observe({
          sentUnixUs: Number(echoUnixUs),
          routerUnixUs: Number(routerUnixUs),
          receivedUnixUs: clock.wallUnixUs(),
        });
      }
    }
    const end = this.stream.step(input, clock.now());
    if (end !== undefined) {
      this.#endWith(end);
      return;
    }
    if (input.kind === "accepted") {
      this.#state = "member";
      this.#lastProblem = "";
      backoff.reset();
      refusedBackoff.reset();
      log.info({ event: "router_joined", router: this.target }, "joined a router");
    } else if (input.kind === "resync") {
      this.#options.metrics.snapshots.inc({ cause: "resync" });
      this.#sawSnapshots++;
    }
    this.pump();
  }

  #countSnapshots(): void {
    const begun = this.stream.snapshotCount - this.#sawSnapshots;
    if (begun <= 0) return;
    this.#options.metrics.snapshots.inc({ cause: "join_or_overflow" }, begun);
    this.#sawSnapshots = this.stream.snapshotCount;
  }

  #hello(nonce: Uint8Array): JoinRequest {
    const { member, joinKey } = this.#options;
    const facts = member.helloFacts();
    const proof = joinProof(joinKey.key, {
      workerId: facts.workerId,
      engineAddress: facts.engineAddress,
      workerStartMs: facts.workerStartMs,
      engineLife: BigInt(facts.engineLife),
      nonce,
    });
    return { message: { $case: "hello", value: toHello(facts, { proof, keyId: joinKey.id }) } };
  }

  #endWith(end: JoinEnd): void {
    switch (end.kind) {
      case "refused":
        this.#end?.({ kind: "refused", refusal: end.refusal });
        return;
      case "protocol_error":
        this.#end?.({ kind: "fault", outcome: "protocol_error", message: end.message });
        return;
      case "timeout":
        this.#end?.({
          kind: "fault",
          outcome: "timeout",
          message: `no ${end.waitedFor} from the router in time`,
        });
        return;
    }
  }

  #endOf(ending: StatusObject): SessionEnd {
    if (this.#leaving) return { kind: "left" };
    const errorCode = ending.metadata.get("kvmesh-error-code")[0]?.toString();
    const refusal = refusalOfEnd({ code: ending.code, details: ending.details, errorCode });
    if (refusal !== undefined) return { kind: "refused", refusal };
    const outcome = this.stream.isDraining ? "router_drained" : status[ending.code];
    return { kind: "fault", outcome: outcome.toLowerCase(), message: ending.details };
  }

  /** Logs a problem once, until it is another one or solved. */
  #report(end: SessionEnd): void {
    if (end.kind === "restart" || end.kind === "left") return;
    const problem = end.kind === "refused" ? end.refusal.kind : end.outcome;
    if (problem === this.#lastProblem) return;
    this.#lastProblem = problem;
    const { log } = this.#options;
    if (end.kind === "refused") {
      const { kind, message, mend } = end.refusal;
      log.error(
        { event: "join_refused", router: this.target, refusal: kind, reason: message, mend },
        "a router refuses this worker",
      );
    } else {
      log.warn(
        { event: "router_lost", router: this.target, outcome: end.outcome, reason: end.message },
        "no join stream to a router",
      );
    }
  }
}

function outcomeOf(end: SessionEnd): string {
  return end.kind === "refused" ? end.refusal.kind : end.kind === "fault" ? end.outcome : end.kind;
}
