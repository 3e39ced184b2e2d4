import { createHmac } from "node:crypto";
import { status, type ClientDuplexStream, type StatusObject } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Backoff } from "../../shared/core/backoff.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { relayEngines } from "../../shared/core/placement-token/placement.ts";
import { relayProofMessage } from "../../shared/core/placement-token/relay-proof.ts";
import { createChannelCredentials, createChannelOptions } from "../../shared/edge/grpc-client.ts";
import type { NamedKey } from "../../shared/edge/keys.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import {
  RelaysClient,
  type AttachRequest,
  type AttachResponse,
  type DrainOrder,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import { attachProtocolVersion, AttachStream } from "../core/topology/attach-stream.ts";
import { LegNotices } from "../core/topology/leg-notices.ts";
import type { RouterView } from "../core/topology/live-topology.ts";
import type { relayMetrics } from "../metrics.ts";
import { toAttachInput, toAttachRequest, type RelayFacts } from "./attach-wire.ts";

/** State of an attachment as metrics show it. */
export type AttachmentState = "disconnected" | "attaching" | "attached" | "refused";

const tickMs = 100;
const goodbyeMsMax = 500;
const noticesKeptMax = 4_096;

/** Ends of a stream that a person must mend: bad proof, address not allowed, instance taken, older epoch, bad hello. */
const refusals: ReadonlySet<number> = new Set([
  status.UNAUTHENTICATED,
  status.PERMISSION_DENIED,
  status.ALREADY_EXISTS,
  status.ABORTED,
  status.INVALID_ARGUMENT,
  status.UNIMPLEMENTED,
]);

/** What an attachment needs. */
export interface RouterAttachmentOptions {
  /** host:port of the router's control port. */
  readonly target: string;
  readonly joinKey: NamedKey;
  facts(): RelayFacts;
  onView(router: string, view: RouterView): void;
  onLost(router: string): void;
  onDrain(order: DrainOrder): void;
  onKeep(decisionIds: readonly string[], reason: string): void;
  readonly backoff: Backoff;
  readonly refusedBackoff: Backoff;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof relayMetrics>;
}

/** Keeps a relay attached to one router: dials, answers the challenge, tells and hears, and dials again. */
export class RouterAttachment {
  readonly target: string;
  readonly stream: AttachStream;
  readonly #options: RouterAttachmentOptions;
  readonly #client: RelaysClient;
  readonly #stop = new AbortController();
  #call: ClientDuplexStream<AttachRequest, AttachResponse> | undefined;
  #end: ((ending: { readonly outcome: string; readonly refused: boolean }) => void) | undefined;
  #isWritable = true;
  #state: AttachmentState = "disconnected";
  #lastProblem = "";

  constructor(options: RouterAttachmentOptions) {
    this.target = options.target;
    this.#options = options;
    this.stream = new AttachStream(new LegNotices(noticesKeptMax), (router, view) => {
      options.onView(router, view);
    });
    this.#client = new RelaysClient(
      options.target,
      createChannelCredentials(),
      createChannelOptions(),
    );
  }

  get state(): AttachmentState {
    return this.#state;
  }

  get #isStopped(): boolean {
    return this.#stop.signal.aborted;
  }

  /** Runs until `leave`. */
  async run(): Promise<void> {
    const { clock, backoff, refusedBackoff, metrics } = this.#options;
    while (!this.#stop.signal.aborted) {
      const { outcome, refused } = await this.#session();
      this.#state = refused ? "refused" : "disconnected";
      metrics.attaches.inc({ outcome });
      if (this.#isStopped) return;
      const pauseMs = refused ? refusedBackoff.next() : backoff.next();
      await clock.sleep(pauseMs, this.#stop.signal).catch(() => undefined);
    }
  }

  /** Sends what is due, as far as the router reads. */
  pump(): void {
    const { clock } = this.#options;
    const call = this.#call;
    while (call !== undefined && this.#isWritable) {
      const now = clock.now();
      const output = this.stream.next(now);
      if (output === undefined) return;
      const request =
        output.kind === "hello"
          ? this.#hello(output.nonce)
          : toAttachRequest(output, this.#options.facts(), {
              now,
              wallUnixUs: clock.wallUnixUs(),
            });
      this.#isWritable = call.write(request);
    }
  }

  /** Says goodbye and ends. */
  async leave(reason: string): Promise<void> {
    const call = this.#call;
    if (call !== undefined && this.stream.isAttached) {
      this.pump();
      const ended = new Promise<void>((resolve) => {
        call.once("status", () => {
          resolve();
        });
      });
      call.write({ message: { $case: "goodbye", value: { reason } } });
      call.end();
      await Promise.race([ended, this.#options.clock.sleep(goodbyeMsMax)]);
    }
    this.#stop.abort();
    this.#end?.({ outcome: "left", refused: false });
    this.#client.close();
  }

  async #session(): Promise<{ readonly outcome: string; readonly refused: boolean }> {
    const { clock } = this.#options;
    const ended = new Promise<{ readonly outcome: string; readonly refused: boolean }>(
      (resolve) => {
        this.#end = resolve;
      },
    );
    const call = this.#client.attach();
    this.#call = call;
    this.#isWritable = true;
    this.#state = "attaching";
    this.stream.step({ kind: "opened" }, clock.now());
    call.on("data", (response: AttachResponse) => {
      if (call === this.#call) this.#receive(response);
    });
    call.on("drain", () => {
      this.#isWritable = true;
      this.pump();
    });
    // The status event says it all; without this listener an error would be thrown.
    call.on("error", () => undefined);
    call.on("status", (ending: StatusObject) => {
      if (call === this.#call) this.#ended(ending);
    });
    const ticking = new AbortController();
    void this.#tick(ticking.signal);
    const end = await ended;
    ticking.abort();
    this.#call = undefined;
    this.#end = undefined;
    const wasAttached = this.stream.isAttached;
    this.stream.step({ kind: "ended" }, clock.now());
    if (wasAttached) this.#options.onLost(this.stream.router);
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
      if (end === undefined) this.pump();
      else if (end.kind === "timeout") this.#problem("timeout", `no ${end.waitedFor} in time`);
    }
  }

  #receive(response: AttachResponse): void {
    const { clock, log, backoff, refusedBackoff } = this.#options;
    const { message } = response;
    if (message?.$case === "drain") this.#options.onDrain(message.value);
    if (message?.$case === "keep") {
      this.#options.onKeep(message.value.decisionIds, message.value.reason);
    }
    const input = toAttachInput(response);
    if (input === undefined) return;
    const end = this.stream.step(input, clock.now());
    if (end?.kind === "protocol_version") {
      const text = `router speaks version ${String(end.theirs)}, this relay ${String(attachProtocolVersion)}; run the same version of both`;
      this.#problem("protocol_version", text, true);
      return;
    }
    if (input.kind === "accepted") {
      this.#state = "attached";
      this.#lastProblem = "";
      backoff.reset();
      refusedBackoff.reset();
      log.info({ event: "router_attached", router: this.target }, "attached to a router");
    }
    this.pump();
  }

  #ended(ending: StatusObject): void {
    const outcome = (status[ending.code] as string | undefined)?.toLowerCase() ?? "unknown";
    this.#problem(outcome, ending.details, refusals.has(ending.code));
  }

  /** Ends the session; logs a problem once, until it is another one or solved. */
  #problem(outcome: string, text: string, refused = false): void {
    const { log } = this.#options;
    if (outcome !== this.#lastProblem && !this.#stop.signal.aborted) {
      this.#lastProblem = outcome;
      const fields = { event: "router_lost", router: this.target, outcome, reason: text };
      if (refused) log.error(fields, "a router refuses this relay");
      else log.warn(fields, "no attach stream to a router");
    }
    this.#end?.({ outcome, refused });
  }

  #hello(nonce: Uint8Array): AttachRequest {
    const { joinKey } = this.#options;
    const facts = this.#options.facts();
    const message = relayProofMessage({
      relay: facts.instance,
      epoch: facts.epoch,
      h2Address: facts.h2Address,
      httpAddress: facts.httpAddress,
      nonce,
    });
    return {
      message: {
        $case: "hello",
        value: {
          protocolVersion: attachProtocolVersion,
          instance: facts.instance,
          epoch: BigInt(facts.epoch),
          h2Address: facts.h2Address,
          httpAddress: facts.httpAddress,
          proof: createHmac("sha256", joinKey.key).update(message).digest(),
          joinKeyId: joinKey.id,
          engines: [...relayEngines],
          streamsMax: facts.streamsMax,
        },
      },
    };
  }
}
