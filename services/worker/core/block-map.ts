import { hashNextBlock, hashRoot, type HashRoot } from "../../shared/core/block-hash.ts";
import { invariant } from "../../shared/core/invariant.ts";
import { BlockSlots } from "./block-slots.ts";
import type { ExtraKey, KvEvent, RemovedEvent, StoredEvent } from "./kv-events/kv-event.ts";
import { U64Map } from "./u64-map.ts";

/** Receives what the set of mesh blocks does. Each call is a real change: nothing is stored twice. */
export interface MeshBlockSink {
  stored(lo: number, hi: number): void;
  removed(lo: number, hi: number): void;
  /** All blocks are gone; not called when there were none. */
  cleared(): void;
}

/** Why an engine block, or an event, did not change the set. */
export type BlockSkipReason =
  /** Parent not known: the chain cannot be hashed. */
  | "orphan"
  /** Identity holds media, embeddings or an unnamed adapter: no router can ask for it. */
  | "opaque"
  /** Not device memory. */
  | "tier"
  /** Not the main attention group of a hybrid model. */
  | "group"
  /** Another block size than the engine's. */
  | "block_size"
  /** Tokens do not cover exactly the blocks. */
  | "unchainable"
  /** Contradicts what the same hash or its parent said before. */
  | "conflict"
  /** Removal of a block that is not held. */
  | "unknown_removal";

/** How a `BlockMap` is built. */
export interface BlockMapOptions {
  /** Tokens per engine block; divides `meshBlockSizeTokens` (see `groupSizeOf`). */
  readonly engineBlockSizeTokens: number;
  readonly meshBlockSizeTokens: number;
  /** Most engine blocks held; past it everything is forgotten, since the engine cannot hold more. */
  readonly engineBlocksMax: number;
  /** The deployment's secret seed. */
  readonly hashSeed: Uint8Array;
  /** Main name of the model, root of every hash. */
  readonly model: string;
  readonly sink: MeshBlockSink;
}

const loraNamesMax = 1_024;
const mainKinds: ReadonlySet<string> = new Set([
  "full_attention",
  "mla_attention",
  "sink_full_attention",
]);

/** Engine blocks per mesh block, or `undefined` when the engine's size does not divide the mesh's. */
export function groupSizeOf(sizes: {
  readonly engineBlockSizeTokens: number;
  readonly meshBlockSizeTokens: number;
}): number | undefined {
  const { engineBlockSizeTokens, meshBlockSizeTokens } = sizes;
  if (engineBlockSizeTokens < 1 || meshBlockSizeTokens % engineBlockSizeTokens !== 0)
    return undefined;
  const groupSize = meshBlockSizeTokens / engineBlockSizeTokens;
  return groupSize <= 65_536 ? groupSize : undefined;
}

/**
 * Turns one engine's KV events into the set of mesh blocks that it holds. An engine block is known by the
 * engine's hash; its mesh hash comes from the token ids, chained from its parent. `k` engine blocks make
 * one mesh block, which is held exactly while all of them are.
 *
 * Set semantics: storing twice and removing what is not held change nothing. A block removed while later
 * blocks of its run stay is remembered until they go, so that the run is whole again when it returns.
 * Deterministic; O(blocks of the event), removal O(runs broken).
 */
export class BlockMap {
  readonly #options: BlockMapOptions;
  readonly #groupSize: number;
  readonly #slots: BlockSlots;
  readonly #byEngineHash = new U64Map();
  /** Mesh hash → number of runs that have it; two only when the engine tells apart what we do not. */
  readonly #meshBlocks = new U64Map();
  readonly #loraIndexes = new Map<string, number>();
  readonly #roots = new Map<string, HashRoot>();
  readonly #runTokens: Uint32Array;
  readonly #hash = new Uint32Array(2);
  #mainGroup: number | undefined;
  #engineBlockCount = 0;
  /** Engine blocks, or whole events, that changed nothing, by reason. */
  readonly skipped: Record<BlockSkipReason, number> = {
    orphan: 0,
    opaque: 0,
    tier: 0,
    group: 0,
    block_size: 0,
    unchainable: 0,
    conflict: 0,
    unknown_removal: 0,
  };
  /** Times that more blocks were announced than the engine can hold. */
  overflowCount = 0;

  constructor(options: BlockMapOptions) {
    const groupSize = groupSizeOf(options);
    invariant(groupSize !== undefined, "the engine's block size does not divide the mesh's");
    invariant(options.engineBlocksMax >= 1, "a block map needs room for one block");
    this.#options = options;
    this.#groupSize = groupSize;
    this.#slots = new BlockSlots({ blockSizeTokens: options.engineBlockSizeTokens, groupSize });
    this.#runTokens = new Uint32Array(options.meshBlockSizeTokens);
  }

  /** Mesh blocks held. */
  get meshBlockCount(): number {
    return this.#meshBlocks.count;
  }

  /** Engine blocks held, those without a mesh hash included. */
  get engineBlockCount(): number {
    return this.#engineBlockCount;
  }

  /** Engine blocks held or remembered for the sake of later blocks of their run; what the bound is about. */
  get rememberedCount(): number {
    return this.#slots.count;
  }

  /** Applies one event. */
  apply(event: KvEvent): void {
    switch (event.kind) {
      case "stored":
        this.#store(event);
        return;
      case "removed":
        this.#remove(event);
        return;
      case "cleared":
        this.forget();
        return;
    }
  }

  /** Drops everything: the engine cleared its cache, restarted, or events were lost. */
  forget(): void {
    const hadBlocks = this.#meshBlocks.count > 0;
    this.#slots.clear();
    this.#byEngineHash.clear();
    this.#meshBlocks.clear();
    this.#loraIndexes.clear();
    this.#engineBlockCount = 0;
    if (hadBlocks) this.#options.sink.cleared();
  }

  /** The mesh hashes held, as pairs `[lo0, hi0, …]`, in no order that means anything. */
  meshHashes(): Uint32Array {
    const out = new Uint32Array(2 * this.#meshBlocks.count);
    let at = 0;
    this.#meshBlocks.forEach((lo, hi) => {
      out[at++] = lo;
      out[at++] = hi;
    });
    return out;
  }

  #skip(reason: BlockSkipReason, blocks: number): void {
    this.skipped[reason] += blocks;
  }

  #isOtherTier(event: StoredEvent | RemovedEvent): boolean {
    if (event.locality !== undefined && event.locality !== "LOCAL") return true;
    return event.medium !== undefined && event.medium !== "GPU";
  }

  #isOtherGroup(event: StoredEvent): boolean {
    const { groupIndex, specKind } = event;
    if (specKind === undefined ? (groupIndex ?? 0) !== 0 : !mainKinds.has(specKind)) return true;
    if (groupIndex === undefined) return false;
    if (this.#mainGroup === undefined || groupIndex < this.#mainGroup) this.#mainGroup = groupIndex;
    return groupIndex !== this.#mainGroup;
  }

  #store(event: StoredEvent): void {
    const blockCount = event.hashes.length >>> 1;
    const blockSize = this.#options.engineBlockSizeTokens;
    if (this.#isOtherTier(event)) this.#skip("tier", blockCount);
    else if (this.#isOtherGroup(event)) this.#skip("group", blockCount);
    else if (event.blockSizeTokens !== blockSize) this.#skip("block_size", blockCount);
    else if (event.tokens.length !== blockCount * blockSize) this.#skip("unchainable", blockCount);
    else this.#storeChain(event, blockCount);
  }

  #storeChain(event: StoredEvent, blockCount: number): void {
    if (this.#slots.count + blockCount > this.#options.engineBlocksMax) {
      this.overflowCount++;
      this.forget();
      if (blockCount > this.#options.engineBlocksMax) return;
    }
    let parent = -1;
    if (event.hasParent) {
      parent = this.#byEngineHash.get(event.parentLo, event.parentHi);
      if (parent === -1 || !this.#slots.isPresent(parent)) {
        this.#skip("orphan", blockCount);
        return;
      }
    }
    const lora = this.#loraIndex(event);
    if (parent !== -1 && this.#slots.lora(parent) !== lora && !this.#slots.isOpaque(parent)) {
      this.#skip("conflict", blockCount);
      return;
    }
    for (let i = 0; i < blockCount; i++) {
      parent = this.#storeBlock(event, { index: i, parent, lora });
      if (parent === -1) {
        this.#skip("conflict", blockCount - i);
        return;
      }
    }
  }

  /** 0 without an adapter, −1 when it has no name that a router could know. */
  #loraIndex(event: StoredEvent): number {
    const { loraName, loraId } = event;
    if (loraName === undefined) return loraId === undefined ? 0 : unnamedLora;
    let index = this.#loraIndexes.get(loraName);
    if (index === undefined) {
      if (this.#loraIndexes.size >= loraNamesMax) return unnamedLora;
      index = this.#loraIndexes.size + 1;
      this.#loraIndexes.set(loraName, index);
    }
    return index;
  }

  /** Stores one block and returns its slot, or −1 when it contradicts what is known. */
  #storeBlock(event: StoredEvent, block: BlockPlace): number {
    const slots = this.#slots;
    const lo = event.hashes[2 * block.index] as number;
    const hi = event.hashes[2 * block.index + 1] as number;
    const known = this.#byEngineHash.get(lo, hi);
    if (known !== -1) {
      return slots.isPresent(known) || this.#revive(known, event, block) ? known : -1;
    }
    const { parent } = block;
    const startsRun = parent === -1 || slots.position(parent) === this.#groupSize - 1;
    const position = startsRun ? 0 : slots.position(parent) + 1;
    const extras = event.extraKeys?.[block.index];
    const identity = blockIdentity(event, extras, parent === -1);
    const slot = slots.take({ engineLo: lo, engineHi: hi, lora: block.lora, position });
    this.#byEngineHash.set(lo, hi, slot);
    slots.setPresent(slot, true);
    this.#engineBlockCount++;
    if (
      identity === "opaque" ||
      block.lora === unnamedLora ||
      (parent !== -1 && slots.isOpaque(parent))
    ) {
      slots.setOpaque(slot);
      this.#skip("opaque", 1);
      return slot;
    }
    const offset = block.index * this.#options.engineBlockSizeTokens;
    if (this.#groupSize > 1) {
      slots.setTokens(slot, event.tokens, offset);
      if (!startsRun) slots.link(slot, parent);
    }
    const before = this.#chainBefore(event, parent, identity.salt);
    slots.setChain(slot, before);
    if (position === this.#groupSize - 1) this.#endRun(slot, before, event.tokens, offset);
    return slot;
  }

  /** Hashes the run that ends at `slot` and counts it when it is whole. */
  #endRun(slot: number, before: HashRoot, tokens: Uint32Array, offset: number): void {
    const { engineBlockSizeTokens, meshBlockSizeTokens } = this.#options;
    let from = tokens;
    let at = offset;
    if (this.#groupSize > 1) {
      from = this.#runTokens;
      at = 0;
      for (let s = slot; s !== -1; s = this.#slots.parent(s)) {
        this.#slots.copyTokens(s, from, this.#slots.position(s) * engineBlockSizeTokens);
      }
    }
    hashNextBlock(before.lo, before.hi, from, at, meshBlockSizeTokens, this.#hash);
    this.#slots.setChain(slot, { lo: this.#hash[0] as number, hi: this.#hash[1] as number });
    if (this.#isWholeUpTo(slot)) this.#count(slot);
  }

  #chainBefore(event: StoredEvent, parent: number, salt: string | undefined): HashRoot {
    if (parent === -1) return this.#root(event.loraName, salt);
    return { lo: this.#slots.chainLo(parent), hi: this.#slots.chainHi(parent) };
  }

  #root(loraName: string | undefined, salt: string | undefined): HashRoot {
    const { hashSeed, model } = this.#options;
    const lora = loraName === undefined ? {} : { lora: loraName };
    if (salt !== undefined) return hashRoot(hashSeed, { model, salt, ...lora });
    const key = loraName === undefined ? "" : `=${loraName}`;
    let root = this.#roots.get(key);
    if (root === undefined) {
      if (this.#roots.size > loraNamesMax) this.#roots.clear();
      root = hashRoot(hashSeed, { model, ...lora });
      this.#roots.set(key, root);
    }
    return root;
  }

  /** A block that was remembered for the sake of later ones is back. */
  #revive(slot: number, event: StoredEvent, block: BlockPlace): boolean {
    const slots = this.#slots;
    const offset = block.index * this.#options.engineBlockSizeTokens;
    const parentInRun = slots.position(slot) === 0 ? -1 : block.parent;
    if (
      slots.parent(slot) !== parentInRun ||
      slots.lora(slot) !== block.lora ||
      !slots.equalTokens(slot, event.tokens, offset)
    ) {
      return false;
    }
    slots.setPresent(slot, true);
    this.#engineBlockCount++;
    if (this.#isWholeUpTo(slot)) this.#countBelow(slot);
    return true;
  }

  #remove(event: RemovedEvent): void {
    const blockCount = event.hashes.length >>> 1;
    if (this.#isOtherTier(event)) {
      this.#skip("tier", blockCount);
      return;
    }
    const { groupIndex } = event;
    if (groupIndex !== undefined && groupIndex !== (this.#mainGroup ?? groupIndex)) {
      this.#skip("group", blockCount);
      return;
    }
    for (let i = 0; i < blockCount; i++) {
      this.#removeBlock(event.hashes[2 * i] as number, event.hashes[2 * i + 1] as number);
    }
  }

  #removeBlock(lo: number, hi: number): void {
    const slots = this.#slots;
    const slot = this.#byEngineHash.get(lo, hi);
    if (slot === -1 || !slots.isPresent(slot)) {
      this.#skip("unknown_removal", 1);
      return;
    }
    slots.setPresent(slot, false);
    this.#engineBlockCount--;
    if (slots.isCounted(slot)) this.#uncount(slot);
    this.#uncountBelow(slot);
    this.#releaseUnneeded(slot);
  }

  /** Releases a block that is gone and has no later block in its run, then its parent if that is so too. */
  #releaseUnneeded(from: number): void {
    const slots = this.#slots;
    let slot = from;
    while (slot !== -1 && !slots.isPresent(slot) && slots.firstChild(slot) === -1) {
      const parent = slots.parent(slot);
      this.#byEngineHash.delete(slots.engineLo(slot), slots.engineHi(slot));
      slots.release(slot);
      slot = parent;
    }
  }

  #isWholeUpTo(from: number): boolean {
    for (let slot = from; slot !== -1; slot = this.#slots.parent(slot)) {
      if (!this.#slots.isPresent(slot)) return false;
    }
    return true;
  }

  /** Counts every whole run that passes through `slot`, which is whole up to here. Depth is at most k. */
  #countBelow(slot: number): void {
    const slots = this.#slots;
    for (let child = slots.firstChild(slot); child !== -1; child = slots.next(child)) {
      if (!slots.isPresent(child)) continue;
      if (slots.position(child) === this.#groupSize - 1) this.#count(child);
      else this.#countBelow(child);
    }
  }

  #uncountBelow(slot: number): void {
    const slots = this.#slots;
    for (let child = slots.firstChild(slot); child !== -1; child = slots.next(child)) {
      if (slots.isCounted(child)) this.#uncount(child);
      else if (slots.isPresent(child)) this.#uncountBelow(child);
    }
  }

  #count(slot: number): void {
    const lo = this.#slots.chainLo(slot);
    const hi = this.#slots.chainHi(slot);
    this.#slots.setCounted(slot, true);
    const runs = Math.max(0, this.#meshBlocks.get(lo, hi));
    this.#meshBlocks.set(lo, hi, runs + 1);
    if (runs === 0) this.#options.sink.stored(lo, hi);
  }

  #uncount(slot: number): void {
    const lo = this.#slots.chainLo(slot);
    const hi = this.#slots.chainHi(slot);
    this.#slots.setCounted(slot, false);
    const runs = this.#meshBlocks.get(lo, hi);
    if (runs > 1) this.#meshBlocks.set(lo, hi, runs - 1);
    else {
      this.#meshBlocks.delete(lo, hi);
      this.#options.sink.removed(lo, hi);
    }
  }
}

const unnamedLora = 0xffff;

/** Where a block of a store event stands. */
interface BlockPlace {
  /** Index in the event. */
  readonly index: number;
  /** Slot of the block before it, −1 at the start of a sequence. */
  readonly parent: number;
  readonly lora: number;
}

/**
 * What a block's extra keys make of it. The adapter's name is in the root already; a single other text on
 * the first block of a sequence is its cache salt; anything else cannot be told to a router.
 */
function blockIdentity(
  event: StoredEvent,
  extras: readonly ExtraKey[] | undefined,
  isFirst: boolean,
): { readonly salt: string | undefined } | "opaque" {
  if (extras === undefined) return plainIdentity;
  let salt: string | undefined;
  let sawLora = false;
  for (const extra of extras) {
    if (extra.kind !== "text") return "opaque";
    // A salt may be equal to the adapter's name; only the first such text is the adapter.
    if (!sawLora && extra.text === event.loraName) {
      sawLora = true;
      continue;
    }
    if (!isFirst || salt !== undefined) return "opaque";
    salt = extra.text;
  }
  return salt === undefined ? plainIdentity : { salt };
}

const plainIdentity: { readonly salt: string | undefined } = { salt: undefined };
