import { DynamicTable } from "./dynamic-table.ts";
import { HeaderField } from "./header-field.ts";
import { HeaderList } from "./header-list.ts";
import { decodeHuffman } from "./huffman.ts";
import { latin1 } from "./latin1.ts";
import { LiteralCache } from "./literal-cache.ts";
import { staticTable } from "./static-table.ts";

const staticFields: readonly HeaderField[] = staticTable.map(
  ([name, value]) => new HeaderField(name, value),
);

/** Limits of one decoder. */
export interface HpackLimits {
  /** Largest dynamic table the peer may use, bytes; what SETTINGS_HEADER_TABLE_SIZE announces. */
  readonly tableBytesMax: number;
  /** Largest header list kept, as RFC 9113 §6.5.2 counts it. */
  readonly listBytesMax: number;
  /** Most fields of a header list kept. */
  readonly fieldsMax: number;
}

/** Blocks up to this long are remembered whole. */
const rememberedBytesMax = 256;

/**
 * Decodes the header blocks of one direction of a connection (RFC 7541). `decode` must see every block once, in
 * order; after an error the connection's compression state is lost and the connection has to go.
 *
 * A block that leaves the table as it was gives the same list as long as the table does not change; the last such
 * block and its list are kept, since a connection's requests mostly repeat it.
 */
export class HpackDecoder {
  readonly #limits: HpackLimits;
  readonly #table: DynamicTable;
  readonly #literals = new LiteralCache();
  readonly #remembered = new Uint8Array(rememberedBytesMax);
  #rememberedLength = 0;
  #rememberedVersion = -1;
  #rememberedList: HeaderList | undefined;
  #scratch = new Uint8Array(256);
  #bytes: Uint8Array = new Uint8Array(0);
  #at = 0;
  #end = 0;
  /** Set by the readers when the block is broken; they then return something harmless. */
  #error: string | undefined;

  constructor(limits: HpackLimits) {
    this.#limits = limits;
    this.#table = new DynamicTable(limits.tableBytesMax);
  }

  /** Why the last `decode` returned undefined. */
  get error(): string {
    return this.#error ?? "";
  }

  /** The list in `bytes[start, end)`, or undefined when the block is broken; lists are shared, never change one. */
  decode(bytes: Uint8Array, start: number, end: number): HeaderList | undefined {
    if (this.#isRemembered(bytes, start, end)) return this.#rememberedList;
    this.#start(bytes, start, end);
    const versionBefore = this.#table.version;
    const list = new HeaderList();
    while (this.#at < end && this.#error === undefined) {
      const octet = bytes[this.#at] as number;
      if (octet >= 0x80) this.#add(list, this.#entry(this.#integer(0x7f)));
      else if (octet >= 0x40) {
        const field = this.#literal(0x3f);
        if (field !== undefined) this.#table.add(field);
        this.#add(list, field);
      } else if (octet >= 0x20) this.#resize(list);
      else {
        this.#add(list, octet < 0x10 ? this.#unindexed() : this.#literal(0x0f));
      }
    }
    if (this.#error !== undefined) return undefined;
    if (this.#table.version === versionBefore) this.#remember(bytes, start, end, list);
    return list;
  }

  #start(bytes: Uint8Array, start: number, end: number): void {
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
    this.#error = undefined;
  }

  #isRemembered(bytes: Uint8Array, start: number, end: number): boolean {
    const length = end - start;
    if (length !== this.#rememberedLength || this.#table.version !== this.#rememberedVersion) {
      return false;
    }
    for (let i = 0; i < length; i++) {
      if (bytes[start + i] !== this.#remembered[i]) return false;
    }
    return this.#rememberedList !== undefined;
  }

  #remember(bytes: Uint8Array, start: number, end: number, list: HeaderList): void {
    if (end - start > rememberedBytesMax) return;
    for (let i = start; i < end; i++) this.#remembered[i - start] = bytes[i] as number;
    this.#rememberedLength = end - start;
    this.#rememberedVersion = this.#table.version;
    this.#rememberedList = list;
  }

  #add(list: HeaderList, field: HeaderField | undefined): void {
    if (field !== undefined) list.add(field, this.#limits.listBytesMax, this.#limits.fieldsMax);
  }

  #fail(what: string): void {
    this.#error ??= what;
  }

  #entry(index: number): HeaderField | undefined {
    const field = index <= 61 ? staticFields[index - 1] : this.#table.at(index - 62);
    if (field === undefined) this.#fail(`index ${index} is in no table`);
    return field;
  }

  #resize(list: HeaderList): void {
    const size = this.#integer(0x1f);
    if (list.count > 0) this.#fail("table size update after a field");
    else if (size > this.#limits.tableBytesMax) {
      this.#fail(`table size ${size} is above ${this.#limits.tableBytesMax}`);
    } else if (this.#error === undefined) this.#table.resize(size);
  }

  #literal(prefix: number): HeaderField | undefined {
    const index = this.#integer(prefix);
    const name = index === 0 ? this.#string() : this.#entry(index)?.name;
    const value = this.#string();
    return name === undefined || value === undefined ? undefined : new HeaderField(name, value);
  }

  /** A literal without indexing, from the cache when it is one of the last. */
  #unindexed(): HeaderField | undefined {
    const bytes = this.#bytes;
    const start = this.#at;
    const index = this.#integer(0x0f);
    if (index > staticTable.length || this.#error !== undefined) {
      this.#at = start;
      return this.#literal(0x0f);
    }
    const name = index === 0 ? this.#span() : 0;
    const value = this.#span();
    const end = this.#at;
    if (name < 0 || value < 0) {
      this.#at = start;
      return this.#literal(0x0f);
    }
    const known = this.#literals.find(bytes, start, end - start);
    if (known !== undefined) return known;
    this.#at = start;
    const field = this.#literal(0x0f);
    if (field !== undefined) this.#literals.keep(bytes, start, end - start, field);
    return field;
  }

  /** Skips a string; -1 when it has no end here. */
  #span(): number {
    if (this.#at >= this.#end) return -1;
    const length = this.#integer(0x7f);
    if (length > this.#end - this.#at) return -1;
    this.#at += length;
    return length;
  }

  /** An integer whose first octet's low bits are `prefix` (RFC 7541 §5.1), below 2^28. */
  #integer(prefix: number): number {
    let value = (this.#bytes[this.#at++] as number) & prefix;
    if (value < prefix) return value;
    for (let shift = 0; shift <= 21; shift += 7) {
      if (this.#at >= this.#end) {
        this.#fail("integer cut off");
        return 0;
      }
      const octet = this.#bytes[this.#at++] as number;
      value += (octet & 0x7f) << shift;
      if (octet < 0x80) return value;
    }
    this.#fail("integer too large");
    return 0;
  }

  #string(): string | undefined {
    if (this.#error !== undefined) return undefined;
    if (this.#at >= this.#end) {
      this.#fail("string cut off");
      return undefined;
    }
    const isHuffman = (this.#bytes[this.#at] as number) >= 0x80;
    const length = this.#integer(0x7f);
    const from = this.#at;
    if (length > this.#end - from) {
      this.#fail("string cut off");
      return undefined;
    }
    this.#at = from + length;
    if (!isHuffman) return latin1(this.#bytes, from, this.#at);
    const most = Math.ceil((length * 8) / 5);
    if (this.#scratch.length < most) this.#scratch = new Uint8Array(most);
    const decoded = decodeHuffman(this.#bytes, from, this.#at, this.#scratch);
    if (decoded < 0) this.#fail("bad Huffman string");
    return latin1(this.#scratch, 0, Math.max(0, decoded));
  }
}
