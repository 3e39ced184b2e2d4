/** An engine as relays are told of it. */
export interface ToldEngine {
  readonly workerId: string;
  readonly address: string;
  readonly workerStartMs: number;
  readonly engineLife: number;
  readonly engine: string;
  readonly ready: boolean;
}

/** Another relay as relays are told of it. */
export interface ToldRelay {
  readonly instance: string;
  readonly h2Address: string;
  readonly epoch: number;
}

/** What changed; its number is the last one's plus 1. */
export interface TopologyChange {
  readonly seq: number;
  readonly engines: readonly ToldEngine[];
  readonly removedEngines: readonly string[];
  readonly relays: readonly ToldRelay[];
  readonly removedRelays: readonly string[];
}

/** The whole, as of the change with this number. */
export interface TopologySnapshot {
  readonly baseSeq: number;
  readonly engines: readonly ToldEngine[];
  readonly relays: readonly ToldRelay[];
}

/**
 * Engines that placements may name, and relays, as all attached relays are told of them: one numbering for all, so that a
 * relay attached in between gets the snapshot of a number and every change after it. Bounded by members and relays.
 */
export class RelayTopology {
  #engines = new Map<string, ToldEngine>();
  #relays = new Map<string, ToldRelay>();
  #seq = 0;

  /** What there is now. */
  get snapshot(): TopologySnapshot {
    return {
      baseSeq: this.#seq,
      engines: [...this.#engines.values()],
      relays: [...this.#relays.values()],
    };
  }

  /** Takes what there is; returns the change, or `undefined` when nothing is different. O(engines + relays). */
  update(engines: readonly ToldEngine[], relays: readonly ToldRelay[]): TopologyChange | undefined {
    const nextEngines = new Map(engines.map((one) => [one.workerId, one]));
    const nextRelays = new Map(relays.map((one) => [one.instance, one]));
    const change = {
      seq: this.#seq + 1,
      engines: changed(this.#engines, nextEngines, isSameEngine),
      removedEngines: gone(this.#engines, nextEngines),
      relays: changed(this.#relays, nextRelays, isSameRelay),
      removedRelays: gone(this.#relays, nextRelays),
    };
    const { removedEngines, removedRelays } = change;
    const count =
      change.engines.length + removedEngines.length + change.relays.length + removedRelays.length;
    if (count === 0) return undefined;
    this.#seq++;
    this.#engines = nextEngines;
    this.#relays = nextRelays;
    return change;
  }
}

function changed<T>(
  before: ReadonlyMap<string, T>,
  after: ReadonlyMap<string, T>,
  isSame: (a: T, b: T) => boolean,
): T[] {
  const list: T[] = [];
  for (const [key, one] of after) {
    const known = before.get(key);
    if (known === undefined || !isSame(known, one)) list.push(one);
  }
  return list;
}

function gone<T>(before: ReadonlyMap<string, T>, after: ReadonlyMap<string, T>): string[] {
  return [...before.keys()].filter((key) => !after.has(key));
}

function isSameEngine(a: ToldEngine, b: ToldEngine): boolean {
  return (
    a.address === b.address &&
    a.workerStartMs === b.workerStartMs &&
    a.engineLife === b.engineLife &&
    a.engine === b.engine &&
    a.ready === b.ready
  );
}

function isSameRelay(a: ToldRelay, b: ToldRelay): boolean {
  return a.h2Address === b.h2Address && a.epoch === b.epoch;
}
