/** A hash of a short name, byte by byte. */
function step(hash: number, byte: number): number {
  return Math.imul(hash ^ byte, 0x01000193);
}

const slots = 256;

/** Finds the names that mean something among those in a text, without making a string of each. */
export class NameTable {
  readonly #names: (readonly { readonly name: string; readonly bytes: Uint8Array }[])[];
  /** Length of the longest name, bytes. */
  readonly #sizeMax: number;
  /** Index behind the closing quote of the name read last. */
  end = 0;

  constructor(names: Iterable<string>) {
    const table = Array.from({ length: slots }, (): { name: string; bytes: Uint8Array }[] => []);
    const encoder = new TextEncoder();
    let sizeMax = 0;
    for (const name of names) {
      const bytes = encoder.encode(name);
      table[bytes.reduce(step, 0) & (slots - 1)]?.push({ name, bytes });
      sizeMax = Math.max(sizeMax, bytes.length);
    }
    this.#names = table;
    this.#sizeMax = sizeMax;
  }

  /**
   * The name that the JSON string at `at` spells: one of those in the table, "" for any other; `undefined` for what is no
   * string, has escapes or is longer than any name by far. Sets `end`.
   */
  read(bytes: Uint8Array, at: number): string | undefined {
    if (bytes[at] !== 0x22) return undefined;
    const last = at + 1 + 4 * this.#sizeMax;
    let hash = 0;
    let i = at + 1;
    for (; i < last; i++) {
      const byte = bytes[i] ?? 0;
      if (byte === 0x22) break;
      if (byte < 0x20 || byte === 0x5c) return undefined;
      hash = step(hash, byte);
    }
    if (i >= last) return undefined;
    this.end = i + 1;
    for (const known of this.#names[hash & (slots - 1)] ?? []) {
      if (known.bytes.length === i - at - 1 && startsWith(bytes, at + 1, known.bytes)) {
        return known.name;
      }
    }
    return "";
  }
}

function startsWith(bytes: Uint8Array, at: number, start: Uint8Array): boolean {
  for (let i = 0; i < start.length; i++) if (bytes[at + i] !== start[i]) return false;
  return true;
}
