import type { Allowance, FloodKind } from "./limits.ts";

/** One token bucket for each kind of suspicious frame on a connection. */
export class FloodGuard {
  readonly #allowances: Readonly<Record<FloodKind, Allowance>>;
  readonly #tokens: Record<FloodKind, number>;
  #filledAt: number;

  /** `now`: ms of any monotonic clock, here as in every call. */
  constructor(allowances: Readonly<Record<FloodKind, Allowance>>, now: number) {
    this.#allowances = allowances;
    this.#tokens = {
      rapid_reset: allowances.rapid_reset.burst,
      stream_errors: allowances.stream_errors.burst,
      settings_flood: allowances.settings_flood.burst,
      ping_flood: allowances.ping_flood.burst,
      empty_data_flood: allowances.empty_data_flood.burst,
      priority_flood: allowances.priority_flood.burst,
      window_update_flood: allowances.window_update_flood.burst,
      unknown_frame_flood: allowances.unknown_frame_flood.burst,
    };
    this.#filledAt = now;
  }

  /** Takes one token; false when there is none, which means a flood. */
  take(kind: FloodKind, now: number): boolean {
    if (this.#tokens[kind] < 1) this.#refill(now);
    if (this.#tokens[kind] < 1) return false;
    this.#tokens[kind]--;
    return true;
  }

  /** Gives tokens back for honest work, up to the burst. */
  earn(kind: FloodKind, count: number): void {
    const { burst } = this.#allowances[kind];
    const tokens = this.#tokens[kind];
    if (tokens < burst) this.#tokens[kind] = Math.min(burst, tokens + count);
  }

  #refill(now: number): void {
    const seconds = Math.max(0, now - this.#filledAt) / 1_000;
    this.#filledAt = now;
    for (const kind of Object.keys(this.#allowances) as FloodKind[]) {
      this.earn(kind, seconds * this.#allowances[kind].perSecond);
    }
  }
}
