import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { PoolGates } from "../admission/pool-gates.ts";
import type { KvIndex } from "../kv-index/kv-index.ts";
import type { CacheObservers } from "../load/cache-observers.ts";
import type { EngineSpeeds } from "../load/engine-speeds.ts";
import type { LoadBook } from "../load/load-book.ts";
import type { RequestEnds } from "../load/request-ends.ts";
import type { PairPlacer } from "../placement/pairs/pair-placer.ts";
import type { PlacementTable } from "../placement/placement-table.ts";
import type { PoolPolicies } from "../placement/pool-policies.ts";
import type { EffectQueue } from "../router-effects.ts";
import { BlockFeed, type BlockChange, type FeedOutcome, type SnapshotPart } from "./block-feed.ts";
import { IndexRepair } from "./index-repair.ts";
import type { Member, MemberFacts, MemberNotice } from "./member.ts";
import type { Members } from "./members.ts";

/** All that a member's coming, changing and going concerns. */
export interface MembershipParts {
  readonly members: Members;
  readonly index: KvIndex;
  readonly book: LoadBook;
  readonly table: PlacementTable;
  readonly pairs: PairPlacer;
  readonly speeds: EngineSpeeds;
  readonly observers: CacheObservers;
  readonly gates: PoolGates;
  readonly policies: PoolPolicies;
  readonly ends: RequestEnds;
  readonly effects: EffectQueue;
}

/** Carries what happens to members through: to the index, the books, placement, admission and whoever is to be told. */
export class Membership {
  readonly #options: { readonly blockSizeTokens: number; readonly blocksMax: number };
  readonly #of: MembershipParts;
  readonly #feeds = new Map<WorkerId, BlockFeed>();
  readonly #repair = new IndexRepair();

  constructor(
    options: { readonly blockSizeTokens: number; readonly blocksMax: number },
    of: MembershipParts,
  ) {
    this.#options = options;
    this.#of = of;
  }

  /** A worker's hello. Returns the stream that it replaces. Throws the refusals of `Members.admit`. */
  admit(
    facts: MemberFacts,
    streamId: number,
    now: MonoMs,
  ): { readonly replacedStream: number | undefined } {
    const { members, speeds, observers } = this.#of;
    const { member, replacedStream, engineRestarted } = members.admit(facts, streamId, now);
    if (engineRestarted) this.#forgetEngine(member, now);
    this.#feeds.set(member.key, this.#createFeed(member));
    speeds.joined(member, engineRestarted, now);
    observers.joined(member.key);
    this.#changed(member, true);
    return { replacedStream };
  }

  /** A part of a member's snapshot. */
  snapshot(key: WorkerId, part: SnapshotPart, now: MonoMs): FeedOutcome {
    return this.#outcome(key, this.#feeds.get(key)?.snapshot(part), now);
  }

  /** A change of a member's blocks. */
  delta(key: WorkerId, change: BlockChange, now: MonoMs): FeedOutcome {
    const outcome = this.#outcome(key, this.#feeds.get(key)?.delta(change), now);
    this.#of.observers.stored(key, change.stored);
    return outcome;
  }

  /** A report comes after every change of blocks before it, so a feed in step is as new as the report. */
  reported(key: WorkerId, at: MonoMs): void {
    const member = this.#of.members.get(key);
    if (member === undefined || this.#feeds.get(key)?.synced !== true) return;
    if (at > member.blocksHeardAt) member.blocksHeardAt = at;
  }

  /** Whether a member is to send its snapshot again because the index was full; asked with each of its reports. */
  repairDue(key: WorkerId, now: MonoMs): boolean {
    const { members, index } = this.#of;
    const slot = members.get(key)?.slot;
    if (slot === undefined || this.#feeds.get(key)?.synced !== true) return false;
    const lostPairs = index.lostPairsOf(slot);
    const { blockCount } = index;
    return this.#repair.isDue(
      key,
      { lostPairs, blockCount, blocksMax: this.#options.blocksMax },
      now,
    );
  }

  /** The engine became able or unable to take requests. */
  setReady(key: WorkerId, ready: boolean): void {
    const member = this.#of.members.get(key);
    if (member === undefined || member.ready === ready) return;
    member.ready = ready;
    this.#changed(member, true);
  }

  /** A worker's stream ended. */
  streamLost(streamId: number, now: MonoMs): void {
    const member = this.#of.members.streamLost(streamId, now);
    if (member === undefined) return;
    member.suspect = true;
    this.#changed(member, true);
  }

  /** A worker said goodbye, here or to a peer. */
  goodbye(key: WorkerId): void {
    this.#remove(key, true);
  }

  /** What a peer says of a member. */
  notice(router: string, notice: MemberNotice, now: MonoMs): void {
    const member = this.#of.members.notice(router, notice, now);
    if (member === undefined) return;
    if (notice.goodbye && member.streamId === undefined) this.#remove(member.key, true);
    else this.#changed(member, false);
  }

  /** A peer router is gone: the streams that it held are held by it no longer. */
  routerLost(router: string, now: MonoMs): void {
    for (const member of this.#of.members.routerLost(router, now)) this.#changed(member, false);
  }

  /** A peer's snapshot named every member that it holds; `keys` are `workerId/dpRank`. */
  peerHoldsOnly(router: string, keys: ReadonlySet<string>, now: MonoMs): void {
    for (const member of this.#of.members.heldOnly(router, keys, now)) this.#changed(member, false);
  }

  /** Removes members that nobody has held for the grace period. */
  tick(now: MonoMs): void {
    for (const member of this.#of.members.expired(now)) this.#remove(member.key, false);
  }

  #outcome(key: WorkerId, outcome: FeedOutcome | undefined, now: MonoMs): FeedOutcome {
    const member = this.#of.members.get(key);
    const feed = this.#feeds.get(key);
    if (member === undefined || feed === undefined || outcome === undefined) {
      return { kind: "applied" };
    }
    member.appliedSeq = feed.appliedSeq;
    member.blocksHeardAt = now;
    if (outcome.kind === "resync") member.resyncs++;
    if (member.suspect !== !feed.synced) {
      member.suspect = !feed.synced;
      this.#changed(member, true);
    }
    return outcome;
  }

  #createFeed(member: Member): BlockFeed {
    const { slot } = member;
    const { index } = this.#of;
    const capacityBlocks = (member.facts?.capacityTokens ?? 0) / this.#options.blockSizeTokens;
    return new BlockFeed({
      blocksMax: capacityBlocks > 0 ? Math.ceil(capacityBlocks * 2) + 1_024 : 8_000_000,
      sink: {
        store: (hashes) => {
          if (slot !== undefined) index.store(slot, hashes);
        },
        remove: (hashes) => {
          if (slot !== undefined) index.remove(slot, hashes);
        },
        clear: () => {
          if (slot !== undefined) index.clear(slot);
        },
      },
    });
  }

  #changed(member: Member, tellPeers: boolean): void {
    const { table, speeds, pairs, gates, effects } = this.#of;
    table.memberChanged(member, speeds.of(member.key));
    pairs.memberChanged(member);
    gates.get(member.pool)?.admission.freed();
    effects.push({ kind: "member_changed", member, tellPeers });
  }

  /** The engine's cache and requests are gone. */
  #forgetEngine(member: Member, now: MonoMs): void {
    const { index, observers, gates, book, ends } = this.#of;
    if (member.slot !== undefined) index.clear(member.slot);
    observers.clear(member.key);
    gates.get(member.pool)?.rooms.forget(member.key);
    for (const closed of book.workerGone(member.key, now)) ends.closed(closed, undefined);
  }

  #remove(key: WorkerId, goodbye: boolean): void {
    const { members, index, book, pairs, table, gates, speeds, observers, policies, effects } =
      this.#of;
    const member = members.get(key);
    if (member === undefined) return;
    if (member.slot !== undefined) index.clear(member.slot);
    book.forget(key);
    pairs.memberLeft(key);
    table.memberLeft(key);
    const gate = gates.get(member.pool);
    gate?.rooms.forget(key);
    gate?.shares.workerLeft();
    members.remove(key);
    this.#feeds.delete(key);
    this.#repair.forget(key);
    speeds.left(key);
    observers.left(key);
    policies.workerLeft(member.pool, key);
    effects.push({ kind: "member_left", member, goodbye });
  }
}
