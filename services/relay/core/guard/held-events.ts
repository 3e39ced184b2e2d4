const nameLine = new TextEncoder().encode("id: ");
const lineFeed = 0x0a;

/**
 * Events of a stream that wait until its buddy has confirmed that it keeps the stream: a client that has a token can then
 * always go on from it, and one that has none loses nothing by asking anew.
 */
export class HeldEvents {
  readonly #bytesMax: number;
  readonly #pieces: Uint8Array[] = [];
  #bytes = 0;

  /** `bytesMax`: above it nothing more should wait. */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get isEmpty(): boolean {
    return this.#bytes === 0;
  }

  /** Takes whole events; false when so much waits that it should go out. */
  add(events: Uint8Array): boolean {
    this.#pieces.push(events);
    this.#bytes += events.length;
    return this.#bytes <= this.#bytesMax;
  }

  /** Hands out what waits; `named`: with the names that its events were given, which mean nothing unless the stream is kept. */
  take(named: boolean): Uint8Array {
    const all = joined(this.#pieces, this.#bytes);
    this.#pieces.length = 0;
    this.#bytes = 0;
    return named ? all : withoutNames(all);
  }
}

/** Events without the lines that name them. Data never holds a line break, so that each line that begins so is a name. */
function withoutNames(events: Uint8Array): Uint8Array {
  const kept: Uint8Array[] = [];
  let size = 0;
  for (let from = 0; from < events.length;) {
    const found = events.indexOf(lineFeed, from);
    const line = events.subarray(from, found < 0 ? events.length : found + 1);
    from += line.length;
    if (nameLine.every((byte, index) => line[index] === byte)) continue;
    kept.push(line);
    size += line.length;
  }
  return joined(kept, size);
}

function joined(pieces: readonly Uint8Array[], size: number): Uint8Array {
  const all = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
