import { MeshError } from "../../../shared/core/errors.ts";
import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import {
  compareEpochs,
  memberKey,
  type Member,
  type MemberFacts,
  type MemberNotice,
} from "./member.ts";

/** Settings of the membership. */
export interface MembersOptions {
  readonly blockSizeTokens: number;
  /** How long a member stays after nobody holds its stream, ms. */
  readonly graceMs: number;
  /** Most members at once. */
  readonly membersMax: number;
}

/** What a hello led to. */
export interface Admission {
  readonly member: Member;
  /** Stream that the newer one replaces, to be ended with `stale_epoch`. */
  readonly replacedStream: number | undefined;
  /** The engine is another life of the one known: its blocks and requests are gone. */
  readonly engineRestarted: boolean;
}

/**
 * Who is in the mesh: the union of what all routers' streams say. A stream is a lease; a member leaves when no
 * live router has held its stream for the grace period, or when it said goodbye.
 *
 * | event \ member | unknown | held here | held by peers only | held by nobody |
 * |---|---|---|---|---|
 * | hello, same address, epoch ≥ known | joins | newer stream takes over | held here too | held again |
 * | hello, same address, older epoch | joins | stale_epoch | stale_epoch | stale_epoch |
 * | hello, other address | joins | already_exists | already_exists | moves |
 * | stream lost | – | held by peers or nobody | – | – |
 * | goodbye | – | leaves | leaves | leaves |
 * | grace over | – | – | – | leaves |
 */
export class Members {
  readonly #options: MembersOptions;
  readonly #members = new Map<WorkerId, Member>();
  readonly #pools = new Map<string, Map<WorkerId, Member>>();
  readonly #freeSlots: number[] = [];
  #nextSlot = 0;

  constructor(options: MembersOptions) {
    this.#options = options;
  }

  /** All members, by key. */
  all(): Iterable<Member> {
    return this.#members.values();
  }

  /** Members of one pool. */
  ofPool(pool: string): Iterable<Member> {
    return this.#pools.get(pool)?.values() ?? [];
  }

  /**
   * The pool that serves a model, or `undefined`. Of several the first by id, so that all routers choose the same,
   * whoever joined first. O(pools + members of pools with other models).
   */
  poolOf(model: string): string | undefined {
    let found: string | undefined;
    for (const [pool, members] of this.#pools) {
      if (found !== undefined && found < pool) continue;
      for (const member of members.values()) {
        if (!member.models.includes(model)) continue;
        found = pool;
        break;
      }
    }
    return found;
  }

  /** One member. */
  get(key: WorkerId): Member | undefined {
    return this.#members.get(key);
  }

  /** Number of members. */
  get size(): number {
    return this.#members.size;
  }

  /** The member whose stream this is. */
  byStream(streamId: number): Member | undefined {
    for (const member of this.#members.values()) if (member.streamId === streamId) return member;
    return undefined;
  }

  /** Takes a hello. Throws `invalid_request`, `already_exists`, `stale_epoch` or `overloaded`, each saying how to mend it. */
  admit(facts: MemberFacts, streamId: number, now: MonoMs): Admission {
    this.#checkFacts(facts);
    const key = memberKey(facts.workerId, facts.dpRank);
    this.#checkAddress(facts, key);
    const known = this.#members.get(key);
    if (known === undefined) {
      if (this.#members.size >= this.#options.membersMax) {
        throw new MeshError(
          "overloaded",
          `the router holds ${this.#options.membersMax} members, its maximum`,
        );
      }
      const member = this.#create(facts, key, now);
      member.streamId = streamId;
      return { member, replacedStream: undefined, engineRestarted: false };
    }
    const order = compareEpochs(facts.epoch, known.epoch);
    if (order < 0 && known.endpoint === facts.endpoint) {
      throw new MeshError(
        "stale_epoch",
        `worker ${facts.workerId} says epoch ${facts.epoch.workerStartMs}.${facts.epoch.engineLife}, ` +
          `but ${known.epoch.workerStartMs}.${known.epoch.engineLife} is known`,
      );
    }
    const moved = known.endpoint !== facts.endpoint;
    // A peer may have told of the new life already; what counts is the life that this router's own stream knew.
    const before = known.facts?.epoch ?? known.epoch;
    const sameWorker = facts.epoch.workerStartMs === before.workerStartMs;
    const engineRestarted = moved || (sameWorker && facts.epoch.engineLife > before.engineLife);
    const replacedStream = known.streamId;
    known.facts = facts;
    known.epoch = facts.epoch;
    this.#enterPool(known, facts.pool);
    known.endpoint = facts.endpoint;
    known.models = facts.models;
    known.ready = facts.ready;
    known.role = facts.role;
    known.streamId = streamId;
    known.unheldSince = undefined;
    known.suspect = true;
    known.appliedSeq = 0;
    known.slot ??= this.#takeSlot();
    return { member: known, replacedStream, engineRestarted };
  }

  /** The stream to this router ended without a goodbye. Ignored when a newer stream has taken over. */
  streamLost(streamId: number, now: MonoMs): Member | undefined {
    const member = this.byStream(streamId);
    if (member === undefined) return undefined;
    member.streamId = undefined;
    if (member.heldBy.size === 0) member.unheldSince = now;
    return member;
  }

  /** What another router says of a member. Returns the member when something changed. */
  notice(router: string, notice: MemberNotice, now: MonoMs): Member | undefined {
    const key = memberKey(notice.workerId, notice.dpRank);
    let member = this.#members.get(key);
    if (member === undefined) {
      if (notice.goodbye || !notice.held || this.#members.size >= this.#options.membersMax)
        return undefined;
      member = this.#create(notice, key, now);
    }
    const order = compareEpochs(notice.epoch, member.epoch);
    if (notice.held) member.heldBy.add(router);
    else member.heldBy.delete(router);
    if (order > 0 || (order === 0 && member.streamId === undefined)) {
      // A peer may hear of a new life before this router's own stream tells it.
      member.epoch = notice.epoch;
      member.endpoint = notice.endpoint;
      member.models = notice.models;
      this.#enterPool(member, notice.pool);
      member.ready = notice.ready;
      member.role = notice.role ?? "both";
    }
    this.#settle(member, now);
    return member;
  }

  /** A router is gone: the streams it held are held by it no longer. Returns the members concerned. */
  routerLost(router: string, now: MonoMs): Member[] {
    const touched: Member[] = [];
    for (const member of this.#members.values()) {
      if (!member.heldBy.delete(router)) continue;
      this.#settle(member, now);
      touched.push(member);
    }
    return touched;
  }

  /** A router holds exactly the members named (`workerId/dpRank`). Returns those that it holds no longer. */
  heldOnly(router: string, keys: ReadonlySet<string>, now: MonoMs): Member[] {
    const touched: Member[] = [];
    for (const member of this.#members.values()) {
      if (keys.has(`${member.workerId}/${member.dpRank}`) || !member.heldBy.delete(router))
        continue;
      this.#settle(member, now);
      touched.push(member);
    }
    return touched;
  }

  /** Removes a member at once. Returns it with the slot that it had, which is free again. */
  remove(key: WorkerId): Member | undefined {
    const member = this.#members.get(key);
    if (member === undefined) return undefined;
    this.#members.delete(key);
    this.#leavePool(member);
    if (member.slot !== undefined) this.#freeSlots.push(member.slot);
    return member;
  }

  /** Members that nobody has held for the grace period. */
  expired(now: MonoMs): Member[] {
    return [...this.#members.values()].filter(
      (m) => m.unheldSince !== undefined && now - m.unheldSince >= this.#options.graceMs,
    );
  }

  #settle(member: Member, now: MonoMs): void {
    const held = member.streamId !== undefined || member.heldBy.size > 0;
    if (held) member.unheldSince = undefined;
    else member.unheldSince ??= now;
  }

  #create(source: MemberFacts | MemberNotice, key: WorkerId, now: MonoMs): Member {
    const facts = "engineName" in source ? source : undefined;
    const member: Member = {
      key,
      workerId: source.workerId,
      dpRank: source.dpRank,
      epoch: source.epoch,
      pool: source.pool,
      endpoint: source.endpoint,
      models: source.models,
      ready: source.ready,
      role: source.role ?? "both",
      facts,
      slot: facts === undefined ? undefined : this.#takeSlot(),
      streamId: undefined,
      heldBy: new Set(),
      unheldSince: undefined,
      suspect: true,
      appliedSeq: 0,
      resyncs: 0,
      blocksHeardAt: now,
    };
    this.#members.set(key, member);
    this.#enterPool(member, member.pool);
    return member;
  }

  #enterPool(member: Member, pool: string): void {
    if (member.pool !== pool) this.#leavePool(member);
    member.pool = pool;
    let members = this.#pools.get(pool);
    if (members === undefined) {
      members = new Map();
      this.#pools.set(pool, members);
    }
    members.set(member.key, member);
  }

  #leavePool(member: Member): void {
    const members = this.#pools.get(member.pool);
    members?.delete(member.key);
    if (members?.size === 0) this.#pools.delete(member.pool);
  }

  #takeSlot(): number {
    return this.#freeSlots.pop() ?? this.#nextSlot++;
  }

  #checkFacts(facts: MemberFacts): void {
    const { blockSizeTokens } = this.#options;
    const engineBlock = facts.engineBlockSizeTokens;
    if (engineBlock < 1 || blockSizeTokens % engineBlock !== 0) {
      throw new MeshError(
        "invalid_request",
        `the engine's block size of ${engineBlock} tokens does not divide the mesh's of ${blockSizeTokens}; ` +
          `start the engine with a divisor of ${blockSizeTokens} or set blockSizeTokens to a multiple of ${engineBlock}`,
        { field: "engine_block_size_tokens" },
      );
    }
    if (facts.models.length === 0) {
      throw new MeshError("invalid_request", "a worker must name at least one model", {
        field: "model.names",
      });
    }
    for (const other of this.#members.values()) {
      if (other.pool !== facts.pool || other.workerId === facts.workerId) continue;
      if (other.models[0] !== facts.models[0]) {
        throw new MeshError(
          "invalid_request",
          `pool ${facts.pool} serves model ${other.models[0] ?? ""}; worker ${facts.workerId} serves ` +
            `${facts.models[0] ?? ""}: give it a pool of its own`,
          { field: "pool" },
        );
      }
    }
  }

  #checkAddress(facts: MemberFacts, key: WorkerId): void {
    for (const other of this.#members.values()) {
      const held = other.streamId !== undefined || other.heldBy.size > 0;
      if (!held) continue;
      if (other.key === key && other.endpoint !== facts.endpoint) {
        throw new MeshError(
          "already_exists",
          `worker id ${facts.workerId} is held by the engine at ${other.endpoint}; ` +
            `the one at ${facts.endpoint} needs another workerId`,
          { field: "worker_id" },
        );
      }
      if (other.workerId !== facts.workerId && other.endpoint === facts.endpoint) {
        throw new MeshError(
          "already_exists",
          `the engine at ${facts.endpoint} is served by worker ${other.workerId}; run one worker beside each engine`,
          { field: "engine_address" },
        );
      }
    }
  }
}
