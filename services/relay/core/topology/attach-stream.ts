import { createView, type LiveEngine, type LiveRelay, type RouterView } from "./live-topology.ts";
import type { LegNotices, NumberedNotice } from "./leg-notices.ts";

/** Version of `kvmesh.relay.v1.Relays/Attach` spoken here. */
export const attachProtocolVersion = 1;

/** Most notices of one message. */
const noticesPerMessage = 256;
/** How often load is told, ms. */
const loadEveryMs = 500;
/** Longest wait for the challenge, and for the acceptance, ms. */
const handshakeMsMax = 5_000;
/** Engines and relays of one router that are believed. */
const entriesMax = 65_536;

/** A part of a router's snapshot. */
export interface TopologyPart {
  readonly baseSeq: number;
  readonly engines: readonly LiveEngine[];
  readonly relays: readonly LiveRelay[];
  readonly last: boolean;
  readonly engineCount: number;
  readonly relayCount: number;
}

/** A change of a router's topology. */
export interface TopologyChange {
  readonly seq: number;
  readonly engines: readonly LiveEngine[];
  readonly removedEngines: readonly string[];
  readonly relays: readonly LiveRelay[];
  readonly removedRelays: readonly string[];
}

/** What comes from the router, or happens to the stream. */
export type AttachInput =
  | { readonly kind: "opened" }
  | {
      readonly kind: "challenge";
      readonly protocolVersion: number;
      readonly router: string;
      readonly routerEpoch: number;
      readonly nonce: Uint8Array;
    }
  | { readonly kind: "accepted" }
  | { readonly kind: "snapshot"; readonly part: TopologyPart }
  | { readonly kind: "delta"; readonly change: TopologyChange }
  | { readonly kind: "leg_ack"; readonly appliedSeq: number }
  | { readonly kind: "ended" };

/** What the relay says. */
export type AttachOutput =
  | { readonly kind: "hello"; readonly nonce: Uint8Array }
  | { readonly kind: "load" }
  | { readonly kind: "legs"; readonly notices: readonly NumberedNotice[] }
  | { readonly kind: "resync"; readonly expectedSeq: number };

/** Why a stream must be given up. */
export type AttachEnd =
  | { readonly kind: "protocol_version"; readonly theirs: number }
  | { readonly kind: "timeout"; readonly waitedFor: "challenge" | "acceptance" };

type Phase = "closed" | "challenge" | "acceptance" | "attached";

/**
 * The relay's side of one attach stream, without the stream: what came in, what is to go out. A gap or a wrong count in
 * the topology asks for the snapshot again, and what was known stays in use until it is there.
 */
export class AttachStream {
  readonly notices: LegNotices;
  readonly #onView: (router: string, view: RouterView) => void;
  #phase: Phase = "closed";
  #since = 0;
  #nonce: Uint8Array | undefined;
  #router = "";
  #loadAt = 0;
  #view = createView();
  #snapshot: RouterView | undefined;
  #seq = 0;
  #isInStep = false;
  #resync: number | undefined;

  /** `onView`: told what the router knows, whenever that has changed. */
  constructor(notices: LegNotices, onView: (router: string, view: RouterView) => void) {
    this.notices = notices;
    this.#onView = onView;
  }

  /** Instance of the router, once it has said so. */
  get router(): string {
    return this.#router;
  }

  get isAttached(): boolean {
    return this.#phase === "attached";
  }

  /** Whether the topology is complete and in step. */
  get isInStep(): boolean {
    return this.#isInStep;
  }

  step(input: AttachInput, now: number): AttachEnd | undefined {
    switch (input.kind) {
      case "opened":
        this.#phase = "challenge";
        this.#since = now;
        this.#snapshot = undefined;
        this.#resync = undefined;
        return undefined;
      case "challenge":
        if (input.protocolVersion !== attachProtocolVersion) {
          return { kind: "protocol_version", theirs: input.protocolVersion };
        }
        this.#router = input.router;
        this.#nonce = input.nonce;
        this.#phase = "acceptance";
        this.#since = now;
        return undefined;
      case "accepted":
        this.#phase = "attached";
        this.#loadAt = now;
        this.notices.restart();
        return undefined;
      case "snapshot":
        this.#takeSnapshot(input.part);
        return undefined;
      case "delta":
        this.#takeDelta(input.change);
        return undefined;
      case "leg_ack":
        this.notices.acknowledged(input.appliedSeq);
        return undefined;
      case "ended":
        this.#phase = "closed";
        this.#isInStep = false;
        return undefined;
    }
  }

  /** The next message to send; call until there is none. */
  next(now: number): AttachOutput | undefined {
    if (this.#nonce !== undefined && this.#phase === "acceptance") {
      const nonce = this.#nonce;
      this.#nonce = undefined;
      return { kind: "hello", nonce };
    }
    if (this.#phase !== "attached") return undefined;
    if (this.#resync !== undefined) {
      const expectedSeq = this.#resync;
      this.#resync = undefined;
      return { kind: "resync", expectedSeq };
    }
    const notices = this.notices.next(noticesPerMessage);
    if (notices.length > 0) return { kind: "legs", notices };
    if (now < this.#loadAt) return undefined;
    this.#loadAt = now + loadEveryMs;
    return { kind: "load" };
  }

  /** Whether something took too long. */
  tick(now: number): AttachEnd | undefined {
    if (this.#phase !== "challenge" && this.#phase !== "acceptance") return undefined;
    if (now - this.#since < handshakeMsMax) return undefined;
    return { kind: "timeout", waitedFor: this.#phase };
  }

  #takeSnapshot(part: TopologyPart): void {
    const snapshot = (this.#snapshot ??= createView());
    for (const engine of part.engines) snapshot.engines.set(engine.workerId, engine);
    for (const relay of part.relays) snapshot.relays.set(relay.instance, relay);
    if (snapshot.engines.size + snapshot.relays.size > entriesMax) {
      this.#lose(part.baseSeq);
      return;
    }
    if (!part.last) return;
    this.#snapshot = undefined;
    const { engines, relays } = snapshot;
    if (engines.size !== part.engineCount || relays.size !== part.relayCount) {
      this.#lose(part.baseSeq);
      return;
    }
    this.#view = snapshot;
    this.#seq = part.baseSeq;
    this.#isInStep = true;
    this.#onView(this.#router, snapshot);
  }

  #takeDelta(change: TopologyChange): void {
    // Behind a gap nothing fits until the snapshot is there.
    if (!this.#isInStep) return;
    if (change.seq !== this.#seq + 1) {
      this.#lose(this.#seq + 1);
      return;
    }
    this.#seq = change.seq;
    const { engines, relays } = this.#view;
    for (const id of change.removedEngines) engines.delete(id);
    for (const id of change.removedRelays) relays.delete(id);
    for (const engine of change.engines) engines.set(engine.workerId, engine);
    for (const relay of change.relays) relays.set(relay.instance, relay);
    this.#onView(this.#router, this.#view);
  }

  #lose(expectedSeq: number): void {
    this.#isInStep = false;
    this.#snapshot = undefined;
    this.#resync = expectedSeq;
  }
}
