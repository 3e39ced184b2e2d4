const none = -1;
const sizeMin = 256;

const presentBit = 1;
const opaqueBit = 2;
const countedBit = 4;

/**
 * Records of engine blocks in typed arrays, addressed by slot number. A mesh block is a run of `k` engine
 * blocks of one chain; inside such a run every block knows its parent and its children, so that one
 * removal finds all runs it breaks.
 *
 * About 25 bytes per block with k = 1; with larger k also the block's token ids, from which the hash of a
 * run is computed when its last block arrives.
 */
export class BlockSlots {
  readonly #blockSizeTokens: number;
  readonly #linked: boolean;
  #count = 0;
  #free = none;
  #engineLo = new Uint32Array(sizeMin);
  #engineHi = new Uint32Array(sizeMin);
  #chainLo = new Uint32Array(sizeMin);
  #chainHi = new Uint32Array(sizeMin);
  #lora = new Uint16Array(sizeMin);
  #position = new Uint16Array(sizeMin);
  #flags = new Uint8Array(sizeMin);
  #parent = new Int32Array(sizeMin);
  #firstChild = new Int32Array(0);
  #next = new Int32Array(0);
  #previous = new Int32Array(0);
  #tokens = new Uint32Array(0);
  #size = sizeMin;
  #used = 0;

  /** `groupSize`: engine blocks per mesh block, at least 1. */
  constructor(options: { readonly blockSizeTokens: number; readonly groupSize: number }) {
    this.#blockSizeTokens = options.blockSizeTokens;
    this.#linked = options.groupSize > 1;
    if (this.#linked) this.#allocateLinks(sizeMin);
  }

  /** Slots in use. */
  get count(): number {
    return this.#count;
  }

  /** Takes a slot for a new block without parent, children or flags. */
  take(block: {
    readonly engineLo: number;
    readonly engineHi: number;
    readonly lora: number;
    readonly position: number;
  }): number {
    let slot = this.#free;
    if (slot === none) {
      if (this.#used === this.#size) this.#grow();
      slot = this.#used++;
    } else this.#free = this.#parent[slot] as number;
    this.#count++;
    this.#engineLo[slot] = block.engineLo;
    this.#engineHi[slot] = block.engineHi;
    this.#lora[slot] = block.lora;
    this.#position[slot] = block.position;
    this.#flags[slot] = 0;
    this.#parent[slot] = none;
    if (this.#linked) {
      this.#firstChild[slot] = none;
      this.#next[slot] = none;
      this.#previous[slot] = none;
    }
    return slot;
  }

  /** Gives a slot without children back. */
  release(slot: number): void {
    this.#unlink(slot);
    this.#flags[slot] = 0;
    this.#parent[slot] = this.#free;
    this.#free = slot;
    this.#count--;
  }

  /** Gives every slot back; the memory stays for the blocks that will come. */
  clear(): void {
    this.#count = 0;
    this.#free = none;
    this.#used = 0;
  }

  /** Makes `child` a child of `parent` inside one run. */
  link(child: number, parent: number): void {
    this.#parent[child] = parent;
    const first = this.#firstChild[parent] as number;
    this.#next[child] = first;
    if (first !== none) this.#previous[first] = child;
    this.#firstChild[parent] = child;
  }

  #unlink(slot: number): void {
    const parent = this.#parent[slot] as number;
    if (!this.#linked || parent === none) return;
    const next = this.#next[slot] as number;
    const previous = this.#previous[slot] as number;
    if (previous === none) this.#firstChild[parent] = next;
    else this.#next[previous] = next;
    if (next !== none) this.#previous[next] = previous;
  }

  engineLo(slot: number): number {
    return this.#engineLo[slot] as number;
  }

  engineHi(slot: number): number {
    return this.#engineHi[slot] as number;
  }

  /** Hash of the chain up to the last run that ends at or before this block. */
  chainLo(slot: number): number {
    return this.#chainLo[slot] as number;
  }

  chainHi(slot: number): number {
    return this.#chainHi[slot] as number;
  }

  setChain(slot: number, hash: { readonly lo: number; readonly hi: number }): void {
    this.#chainLo[slot] = hash.lo;
    this.#chainHi[slot] = hash.hi;
  }

  /** Number of the chain's LoRA adapter, 0 for none. */
  lora(slot: number): number {
    return this.#lora[slot] as number;
  }

  /** Place of the block inside its run, from 0. */
  position(slot: number): number {
    return this.#position[slot] as number;
  }

  /** The parent inside the same run, or −1. */
  parent(slot: number): number {
    return this.#parent[slot] as number;
  }

  firstChild(slot: number): number {
    return this.#linked ? (this.#firstChild[slot] as number) : none;
  }

  next(slot: number): number {
    return this.#next[slot] as number;
  }

  isPresent(slot: number): boolean {
    return ((this.#flags[slot] as number) & presentBit) !== 0;
  }

  setPresent(slot: number, value: boolean): void {
    this.#setFlag(slot, presentBit, value);
  }

  /** Whether the block's identity has a part that a router cannot know; it and what follows have no mesh hash. */
  isOpaque(slot: number): boolean {
    return ((this.#flags[slot] as number) & opaqueBit) !== 0;
  }

  setOpaque(slot: number): void {
    this.#setFlag(slot, opaqueBit, true);
  }

  /** Whether the run that ends here is counted among the mesh blocks. */
  isCounted(slot: number): boolean {
    return ((this.#flags[slot] as number) & countedBit) !== 0;
  }

  setCounted(slot: number, value: boolean): void {
    this.#setFlag(slot, countedBit, value);
  }

  /** Keeps the block's tokens; only with runs longer than one block. */
  setTokens(slot: number, tokens: Uint32Array, offset: number): void {
    const size = this.#blockSizeTokens;
    this.#tokens.set(tokens.subarray(offset, offset + size), slot * size);
  }

  copyTokens(slot: number, target: Uint32Array, offset: number): void {
    const size = this.#blockSizeTokens;
    target.set(this.#tokens.subarray(slot * size, (slot + 1) * size), offset);
  }

  equalTokens(slot: number, tokens: Uint32Array, offset: number): boolean {
    const size = this.#blockSizeTokens;
    for (let i = 0; i < size; i++) {
      if (this.#tokens[slot * size + i] !== tokens[offset + i]) return false;
    }
    return true;
  }

  #setFlag(slot: number, bit: number, value: boolean): void {
    const flags = this.#flags[slot] as number;
    this.#flags[slot] = value ? flags | bit : flags & ~bit;
  }

  #grow(): void {
    const size = 2 * this.#size;
    this.#engineLo = grown(this.#engineLo, new Uint32Array(size));
    this.#engineHi = grown(this.#engineHi, new Uint32Array(size));
    this.#chainLo = grown(this.#chainLo, new Uint32Array(size));
    this.#chainHi = grown(this.#chainHi, new Uint32Array(size));
    this.#lora = grown(this.#lora, new Uint16Array(size));
    this.#position = grown(this.#position, new Uint16Array(size));
    this.#flags = grown(this.#flags, new Uint8Array(size));
    this.#parent = grown(this.#parent, new Int32Array(size));
    if (this.#linked) this.#allocateLinks(size);
    this.#size = size;
  }

  #allocateLinks(size: number): void {
    this.#firstChild = grown(this.#firstChild, new Int32Array(size));
    this.#next = grown(this.#next, new Int32Array(size));
    this.#previous = grown(this.#previous, new Int32Array(size));
    this.#tokens = grown(this.#tokens, new Uint32Array(size * this.#blockSizeTokens));
  }
}

function grown<T extends Uint8Array | Uint16Array | Uint32Array | Int32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}
