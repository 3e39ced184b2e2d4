import { Pool } from "undici";
import { MeshError } from "../../shared/core/errors.ts";
import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";

/** Connections that are not used are closed after this long; engines' servers close theirs after 5 s (uvicorn). */
const idleConnectionMs = 4_000;

interface EnginePool {
  readonly pool: Pool;
  legs: number;
  usedAt: number;
}

/** Options of `EnginePools`. */
export interface EnginePoolsOptions {
  readonly allowed: readonly Cidr[];
  readonly enginesMax: number;
  readonly legsMax: number;
  readonly connectMs: number;
}

/** HTTP/1.1 connections to engines, one pool an engine, as many connections as legs. */
export class EnginePools {
  readonly #options: EnginePoolsOptions;
  readonly #pools = new Map<string, EnginePool>();
  #legs = 0;

  constructor(options: EnginePoolsOptions) {
    this.#options = options;
  }

  /** Legs open at all engines. */
  get legCount(): number {
    return this.#legs;
  }

  /**
   * Takes room for one leg at an engine, until `release`. Throws `permission_denied` for an address outside the allowed
   * ranges, `overloaded` when the engine has as many legs as it may, or when no room for another engine can be made.
   */
  take(address: string, now: number): Pool {
    const found = this.#pools.get(address) ?? this.#open(address, now);
    if (found.legs >= this.#options.legsMax) {
      const text = `engine ${address} has ${String(found.legs)} legs open, at most ${String(this.#options.legsMax)}`;
      throw new MeshError("overloaded", text, { retryAfterMs: 1_000 });
    }
    found.legs++;
    found.usedAt = now;
    this.#legs++;
    return found.pool;
  }

  /** Gives the room of one leg back. */
  release(address: string, now: number): void {
    const found = this.#pools.get(address);
    if (found === undefined) return;
    found.legs--;
    found.usedAt = now;
    this.#legs--;
  }

  /** Ends all connections. */
  async close(): Promise<void> {
    const pools = [...this.#pools.values()];
    this.#pools.clear();
    await Promise.all(pools.map(({ pool }) => pool.destroy()));
  }

  #open(address: string, now: number): EnginePool {
    const endpoint = parseEndpoint(address);
    if (endpoint === undefined || !inCidrs(this.#options.allowed, endpoint.host)) {
      throw new MeshError(
        "permission_denied",
        `engine address ${address} lies outside relay.engines.allowedCidrs`,
      );
    }
    if (this.#pools.size >= this.#options.enginesMax) this.#makeRoom();
    const pool = new Pool(`http://${address}`, {
      connections: this.#options.legsMax,
      pipelining: 1,
      // Each phase has its own deadline; undici's would end streams that are only quiet.
      headersTimeout: 0,
      bodyTimeout: 0,
      keepAliveTimeout: idleConnectionMs,
      connect: { timeout: this.#options.connectMs },
    });
    const opened = { pool, legs: 0, usedAt: now };
    this.#pools.set(address, opened);
    return opened;
  }

  #makeRoom(): void {
    let oldest: string | undefined;
    let usedAt = Infinity;
    for (const [address, pool] of this.#pools) {
      if (pool.legs > 0 || pool.usedAt >= usedAt) continue;
      oldest = address;
      usedAt = pool.usedAt;
    }
    const found = oldest === undefined ? undefined : this.#pools.get(oldest);
    if (oldest === undefined || found === undefined) {
      throw new MeshError("overloaded", "as many engines are in use as relay.engines.max allows", {
        retryAfterMs: 1_000,
      });
    }
    this.#pools.delete(oldest);
    void found.pool.destroy();
  }
}
