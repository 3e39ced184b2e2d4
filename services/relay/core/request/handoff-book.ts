interface Waiting {
  readonly tokens: number;
  /** When its lease ends, ms; infinite while its prefill is not over. */
  until: number;
}

interface EngineHandoffs {
  tokens: number;
  readonly open: Map<number, Waiting>;
}

/**
 * Hand-offs that wait to be pulled, by prefill engine. Each holds the engine's blocks until it is pulled or its lease
 * ends, and enough of them stop the engine; above `tokensMax` no more are made there.
 */
export class HandoffBook {
  readonly #tokensMax: number;
  readonly #leaseMs: number;
  readonly #engines = new Map<string, EngineHandoffs>();
  #next = 1;
  #tokens = 0;

  constructor(tokensMax: number, leaseMs: number) {
    this.#tokensMax = tokensMax;
    this.#leaseMs = leaseMs;
  }

  /** Tokens of all hand-offs that wait. */
  get tokens(): number {
    return this.#tokens;
  }

  /** Whether one more hand-off of so many tokens may be made at an engine. The first one always may. */
  hasRoom(workerId: string, tokens: number): boolean {
    const engine = this.#engines.get(workerId);
    return engine === undefined || engine.tokens + tokens <= this.#tokensMax;
  }

  /** Enters a hand-off when its prefill is asked for; the number names it. */
  add(workerId: string, tokens: number): number {
    let engine = this.#engines.get(workerId);
    if (engine === undefined) {
      engine = { tokens: 0, open: new Map() };
      this.#engines.set(workerId, engine);
    }
    const id = this.#next++;
    engine.open.set(id, { tokens, until: Infinity });
    engine.tokens += tokens;
    this.#tokens += tokens;
    return id;
  }

  /** Its prefill is over: the engine's lease runs from now. */
  made(workerId: string, id: number, now: number): void {
    const waiting = this.#engines.get(workerId)?.open.get(id);
    if (waiting !== undefined) waiting.until = now + this.#leaseMs;
  }

  /** A hand-off was pulled, or was never made. Twice is once. */
  remove(workerId: string, id: number): void {
    const engine = this.#engines.get(workerId);
    const waiting = engine?.open.get(id);
    if (engine === undefined || waiting === undefined) return;
    engine.open.delete(id);
    engine.tokens -= waiting.tokens;
    this.#tokens -= waiting.tokens;
    if (engine.open.size === 0) this.#engines.delete(workerId);
  }

  /** Forgets those whose lease is over: their engine has. */
  expire(now: number): void {
    for (const [workerId, { open }] of this.#engines) {
      for (const [id, { until }] of open) if (until <= now) this.remove(workerId, id);
    }
  }
}
