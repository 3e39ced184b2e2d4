import { MeshError } from "../../../shared/core/errors.ts";
import type { MonoMs } from "../../../shared/core/ids.ts";
import type { RelayEngine } from "../../../shared/core/placement-token/placement.ts";
import { draw, seedOf } from "../placement/baselines/draw.ts";

/** A relay's facts, as its hello states them. */
export interface RelayFacts {
  readonly instance: string;
  /** Start of its process, ms since 1970. */
  readonly epoch: number;
  /** Where it serves HTTP/2 and gRPC, and HTTP/1.1, ip:port. */
  readonly h2Address: string;
  readonly httpAddress: string;
  /** Adapters that it has. */
  readonly engines: readonly string[];
  readonly streamsMax: number;
}

/** A relay as another router tells of it. */
export interface RelayNotice extends RelayFacts {
  readonly held: boolean;
  readonly goodbye: boolean;
  readonly draining: boolean;
}

/** What a relay says that it carries. */
export interface RelayLoad {
  readonly openRequests: number;
  readonly draining: boolean;
}

/** A relay in this router's view, the union of all routers' streams. */
export interface Relay {
  facts: RelayFacts;
  /** Its live stream to this router. */
  streamId: number | undefined;
  /** Routers other than this one that hold its stream. */
  readonly heldBy: Set<string>;
  /** Since when nobody holds its stream. */
  unheldSince: MonoMs | undefined;
  draining: boolean;
  /** Requests open as it said last, and those given to it since. */
  reportedOpen: number;
  sinceReport: number;
  /** Number of the last leg notice taken from this life of it. */
  appliedSeq: number;
}

/** Settings of the roster. */
export interface RelayRosterOptions {
  /** How long an endpoint stays known to proxies after nobody holds its stream, ms. */
  readonly graceMs: number;
  readonly relaysMax: number;
}

/**
 * Which relays there are. As for workers the stream is the lease, and what counts is the union of all routers' streams:
 *
 * | event \ relay | unknown | held here | held by peers only | held by nobody |
 * |---|---|---|---|---|
 * | hello, epoch ≥ known, same addresses | joins | newer stream takes over | held here too | held again |
 * | hello, older epoch | joins | stale_epoch | stale_epoch | stale_epoch |
 * | hello, other addresses | joins | newer epoch takes over, else already_exists | the same | moves |
 * | stream lost | – | held by peers or nobody | – | – |
 * | goodbye | – | leaves | leaves | leaves |
 * | grace over | – | – | – | leaves |
 *
 * A process that starts again under its name is another life at other ports, so that a newer epoch moves a relay at once.
 */
export class RelayRoster {
  readonly #options: RelayRosterOptions;
  readonly #relays = new Map<string, Relay>();
  #version = 0;

  constructor(options: RelayRosterOptions) {
    this.#options = options;
  }

  /** Grows with every change that others must hear of. */
  get version(): number {
    return this.#version;
  }

  /** All relays, by instance. */
  all(): Relay[] {
    return [...this.#relays.values()].sort((a, b) =>
      a.facts.instance < b.facts.instance ? -1 : 1,
    );
  }

  /** One relay. */
  get(instance: string): Relay | undefined {
    return this.#relays.get(instance);
  }

  /** Number of relays. */
  get size(): number {
    return this.#relays.size;
  }

  /** Takes a hello. Throws `already_exists`, `stale_epoch` or `overloaded`. Returns the stream that it replaces. */
  attach(facts: RelayFacts, streamId: number): { readonly replacedStream: number | undefined } {
    const known = this.#relays.get(facts.instance);
    if (known === undefined) {
      this.#create(facts).streamId = streamId;
      this.#version++;
      return { replacedStream: undefined };
    }
    if (facts.epoch < known.facts.epoch) {
      throw new MeshError(
        "stale_epoch",
        `relay ${facts.instance} says epoch ${facts.epoch}, but ${known.facts.epoch} is known`,
      );
    }
    const moved =
      known.facts.h2Address !== facts.h2Address || known.facts.httpAddress !== facts.httpAddress;
    if (moved && facts.epoch === known.facts.epoch && isHeld(known)) {
      throw new MeshError(
        "already_exists",
        `relay ${facts.instance} is held from ${known.facts.h2Address}; ` +
          `the one at ${facts.h2Address} needs another relay.instance`,
        { field: "instance" },
      );
    }
    const replacedStream = known.streamId;
    this.#take(known, facts);
    known.streamId = streamId;
    known.unheldSince = undefined;
    this.#version++;
    return { replacedStream };
  }

  /** A relay says what it carries. */
  load(instance: string, load: RelayLoad): void {
    const relay = this.#relays.get(instance);
    if (relay === undefined) return;
    relay.reportedOpen = load.openRequests;
    relay.sinceReport = 0;
    this.#setDraining(relay, load.draining);
  }

  /** A stream to this router ended without a goodbye. Ignored when a newer one has taken over. */
  streamLost(streamId: number, now: MonoMs): Relay | undefined {
    for (const relay of this.#relays.values()) {
      if (relay.streamId !== streamId) continue;
      relay.streamId = undefined;
      this.#settle(relay, now);
      this.#version++;
      return relay;
    }
    return undefined;
  }

  /** A relay leaves on purpose. */
  goodbye(instance: string): void {
    if (this.#relays.delete(instance)) this.#version++;
  }

  /** What another router says of a relay. */
  notice(router: string, notice: RelayNotice, now: MonoMs): void {
    let relay = this.#relays.get(notice.instance);
    if (notice.goodbye) {
      const isOwn = relay?.streamId !== undefined;
      if (relay !== undefined && !isOwn && notice.epoch >= relay.facts.epoch) {
        this.goodbye(notice.instance);
      }
      return;
    }
    if (relay === undefined) {
      if (!notice.held || this.#relays.size >= this.#options.relaysMax) return;
      relay = this.#create(notice);
    }
    // One that tells of an older life does not hold this one.
    const isOlder = notice.epoch < relay.facts.epoch;
    if (notice.held && !isOlder) relay.heldBy.add(router);
    else relay.heldBy.delete(router);
    if (isOlder) {
      this.#settle(relay, now);
      this.#version++;
      return;
    }
    const isNewer = notice.epoch > relay.facts.epoch;
    if (isNewer || relay.streamId === undefined) {
      if (isNewer) this.#take(relay, notice);
      this.#setDraining(relay, notice.draining);
    }
    this.#settle(relay, now);
    this.#version++;
  }

  /** A router is gone: the streams that it held are held by it no longer. */
  routerLost(router: string, now: MonoMs): void {
    this.heldOnly(router, new Set(), now);
  }

  /** A router holds exactly these instances. */
  heldOnly(router: string, instances: ReadonlySet<string>, now: MonoMs): void {
    for (const relay of this.#relays.values()) {
      if (instances.has(relay.facts.instance) || !relay.heldBy.delete(router)) continue;
      this.#settle(relay, now);
      this.#version++;
    }
  }

  /** Ends what nobody has held for the grace period. */
  tick(now: MonoMs): void {
    for (const [instance, { unheldSince }] of this.#relays) {
      if (unheldSince === undefined || now - unheldSince < this.#options.graceMs) continue;
      this.#relays.delete(instance);
      this.#version++;
    }
  }

  /** Addresses that proxies know: those that drain are left out, those that were just lost are not. */
  endpoints(): string[] {
    return this.all()
      .filter(({ draining }) => !draining)
      .map(({ facts }) => facts.h2Address);
  }

  /**
   * Relays for a request, first choice first, at most `max`: those with the fewest open requests, and among equal ones in an
   * order of the request's own (rendezvous), so that routers which know the same agree and streams spread. None whose stream
   * nobody holds, that drains, is full, or does not speak the engine's protocol.
   */
  pick(requestId: string, engine: RelayEngine, max: number): Relay[] {
    const usable: { relay: Relay; open: number; drawn: number }[] = [];
    const seed = seedOf(requestId);
    for (const relay of this.#relays.values()) {
      const { facts, draining } = relay;
      if (draining || !isHeld(relay) || !facts.engines.includes(engine)) continue;
      // Only its own stream says what has ended there.
      const open =
        relay.streamId === undefined ? 0 : Math.max(0, relay.reportedOpen + relay.sinceReport);
      if (open >= facts.streamsMax) continue;
      usable.push({ relay, open, drawn: draw(seed, seedOf(facts.instance), 0) });
    }
    usable.sort(
      (a, b) =>
        a.open - b.open ||
        b.drawn - a.drawn ||
        (a.relay.facts.instance < b.relay.facts.instance ? -1 : 1),
    );
    return usable.slice(0, max).map(({ relay }) => relay);
  }

  /** Whether any relay could take a request for this engine. */
  has(engine: RelayEngine): boolean {
    for (const relay of this.#relays.values()) {
      if (!relay.draining && isHeld(relay) && relay.facts.engines.includes(engine)) return true;
    }
    return false;
  }

  /** A request was given to a relay. */
  given(instance: string): void {
    const relay = this.#relays.get(instance);
    if (relay !== undefined) relay.sinceReport++;
  }

  #create(facts: RelayFacts): Relay {
    if (this.#relays.size >= this.#options.relaysMax) {
      throw new MeshError(
        "overloaded",
        `the router knows ${this.#options.relaysMax} relays, its maximum`,
      );
    }
    const relay: Relay = {
      facts: plainFacts(facts),
      streamId: undefined,
      heldBy: new Set(),
      unheldSince: undefined,
      draining: false,
      reportedOpen: 0,
      sinceReport: 0,
      appliedSeq: 0,
    };
    this.#relays.set(facts.instance, relay);
    return relay;
  }

  /** Another life of it: what was counted for the one before means nothing any more. */
  #take(relay: Relay, facts: RelayFacts): void {
    if (facts.epoch !== relay.facts.epoch) {
      relay.reportedOpen = 0;
      relay.sinceReport = 0;
      relay.appliedSeq = 0;
      relay.draining = false;
    }
    relay.facts = plainFacts(facts);
  }

  #setDraining(relay: Relay, draining: boolean): void {
    if (relay.draining === draining) return;
    relay.draining = draining;
    this.#version++;
  }

  #settle(relay: Relay, now: MonoMs): void {
    if (isHeld(relay)) relay.unheldSince = undefined;
    else relay.unheldSince ??= now;
  }
}

function isHeld({ streamId, heldBy }: Relay): boolean {
  return streamId !== undefined || heldBy.size > 0;
}

/** The facts without what else a notice tells. */
function plainFacts(facts: RelayFacts): RelayFacts {
  const { instance, epoch, h2Address, httpAddress, engines, streamsMax } = facts;
  return { instance, epoch, h2Address, httpAddress, engines, streamsMax };
}
