import type { WorkerId } from "../../../../shared/core/ids.ts";
import {
  relayEngines,
  type RelayEngine,
} from "../../../../shared/core/placement-token/placement.ts";
import type { Member } from "../../membership/member.ts";
import { PoolRows } from "../pool-rows.ts";

/** Engines of one pool that can hand KV to each other. */
export interface PairGroup {
  readonly engine: RelayEngine;
  /** Rows of those that compute prompts for others, and of those that go on from there, in the order of their ids. */
  readonly prefill: PoolRows;
  readonly decode: PoolRows;
}

interface Entry {
  readonly key: WorkerId;
  readonly row: number;
  readonly pool: string;
  readonly kind: string;
  readonly engine: RelayEngine;
  readonly canPrefill: boolean;
  readonly canDecode: boolean;
}

const none: readonly PairGroup[] = [];

/** Whether relays speak an engine's protocol for pairs. */
export function isRelayEngine(name: string): name is RelayEngine {
  return (relayEngines as readonly string[]).includes(name);
}

/**
 * Who may take the legs of pairs: ready members with a KV transfer connector whose stream somebody holds. Prefill legs go to
 * the roles prefill and both, decode legs to decode and both; SGLang's engines are started for one side and take no legs as
 * both. Kept up to date by whoever changes members.
 */
export class PairMembers {
  readonly #entries = new Map<WorkerId, Entry>();
  readonly #pools = new Map<string, Map<string, PairGroup>>();
  readonly #bytesPerTokenDefault: number;
  /** By row. */
  #bytesPerToken = new Float64Array(64);
  readonly #prefills = new Set<number>();

  constructor(options: { readonly bytesPerTokenDefault: number }) {
    this.#bytesPerTokenDefault = options.bytesPerTokenDefault;
  }

  /** Groups of a pool with both sides; nothing for most pools. */
  groupsOf(pool: string): readonly PairGroup[] {
    const groups = this.#pools.get(pool);
    if (groups === undefined) return none;
    return [...groups.values()].filter((g) => g.prefill.count > 0 && g.decode.count > 0);
  }

  /** Whether a pool has engines of both sides. */
  hasPairs(pool: string): boolean {
    const groups = this.#pools.get(pool);
    if (groups === undefined) return false;
    for (const { prefill, decode } of groups.values()) {
      if (prefill.count > 0 && decode.count > 0) return true;
    }
    return false;
  }

  /** The engine of a worker that takes legs. */
  engineOf(key: WorkerId): RelayEngine | undefined {
    return this.#entries.get(key)?.engine;
  }

  /** Bytes that the engine of a row moves for one token. */
  bytesPerToken(row: number): number {
    const known = this.#bytesPerToken[row] ?? 0;
    return known > 0 ? known : this.#bytesPerTokenDefault;
  }

  /** Whether the engine of a row computes prompts of others beside its answers. */
  prefills(row: number): boolean {
    return this.#prefills.has(row);
  }

  /** A member joined, or anything that it says of itself changed. */
  memberChanged(member: Member, row: number): void {
    const wanted = entryOf(member, row);
    const known = this.#entries.get(member.key);
    if (wanted !== undefined && known !== undefined && isSame(wanted, known)) {
      this.#setBytes(member, row);
      return;
    }
    this.memberLeft(member.key);
    if (wanted === undefined) return;
    this.#setBytes(member, row);
    this.#entries.set(member.key, wanted);
    const group = this.#group(wanted);
    if (wanted.canPrefill) {
      group.prefill.add(wanted.key, row);
      this.#prefills.add(row);
    }
    if (wanted.canDecode) group.decode.add(wanted.key, row);
  }

  /** A member left. */
  memberLeft(key: WorkerId): void {
    const known = this.#entries.get(key);
    if (known === undefined) return;
    this.#entries.delete(key);
    this.#prefills.delete(known.row);
    const groups = this.#pools.get(known.pool);
    const group = groups?.get(known.kind);
    if (groups === undefined || group === undefined) return;
    if (known.canPrefill) group.prefill.remove(key);
    if (known.canDecode) group.decode.remove(key);
    if (group.prefill.count + group.decode.count > 0) return;
    groups.delete(known.kind);
    if (groups.size === 0) this.#pools.delete(known.pool);
  }

  #setBytes({ facts }: Member, row: number): void {
    if (row >= this.#bytesPerToken.length) {
      const grown = new Float64Array(2 * (row + 1));
      grown.set(this.#bytesPerToken);
      this.#bytesPerToken = grown;
    }
    this.#bytesPerToken[row] = facts?.kvBytesPerToken ?? 0;
  }

  #group({ pool, kind, engine }: Entry): PairGroup {
    let groups = this.#pools.get(pool);
    if (groups === undefined) {
      groups = new Map();
      this.#pools.set(pool, groups);
    }
    let group = groups.get(kind);
    if (group === undefined) {
      group = { engine, prefill: new PoolRows(), decode: new PoolRows() };
      groups.set(kind, group);
    }
    return group;
  }
}

function entryOf(member: Member, row: number): Entry | undefined {
  const { facts, ready, unheldSince, key, pool, role } = member;
  const connector = facts?.kvTransfer ?? "";
  if (facts === undefined || connector === "" || !ready || unheldSince !== undefined) {
    return undefined;
  }
  const { engineName } = facts;
  if (!isRelayEngine(engineName)) return undefined;
  const isSingleSided = engineName === "sglang";
  if (isSingleSided && role === "both") return undefined;
  // A prefill engine without its bootstrap server cannot be reached by any decode engine.
  if (isSingleSided && role === "prefill" && (facts.kvBootstrap ?? "") === "") return undefined;
  return {
    key,
    row,
    pool,
    kind: `${engineName}/${connector}`,
    engine: engineName,
    canPrefill: role !== "decode",
    canDecode: role !== "prefill",
  };
}

function isSame(a: Entry, b: Entry): boolean {
  return (
    a.row === b.row &&
    a.pool === b.pool &&
    a.kind === b.kind &&
    a.canPrefill === b.canPrefill &&
    a.canDecode === b.canDecode
  );
}
