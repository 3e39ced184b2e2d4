import { lookup } from "node:dns/promises";
import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";

const resolveEveryMs = 5_000;
const targetsMax = 64;

/** Finds routers: a fixed list, and the addresses behind a DNS name, resolved again every 5 s. */
export class RouterTargets {
  readonly #fixed: readonly string[];
  readonly #dns: string | undefined;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #lastError = "";

  constructor(
    options: { readonly list: readonly string[]; readonly dns: string | undefined },
    dependencies: { readonly clock: Clock; readonly log: Logger },
  ) {
    this.#fixed = options.list;
    this.#dns = options.dns;
    this.#clock = dependencies.clock;
    this.#log = dependencies.log;
  }

  /** Calls `onTargets` with every router known, now and whenever the name was resolved, until `close`. */
  async run(onTargets: (targets: readonly string[]) => void): Promise<void> {
    onTargets(this.#fixed);
    const name = this.#dns === undefined ? undefined : parseEndpoint(this.#dns);
    while (name !== undefined && !this.#stop.signal.aborted) {
      const found = await this.#resolve(name.host, name.port);
      if (found !== undefined) this.#tell(found, onTargets);
      await this.#clock.sleep(resolveEveryMs, this.#stop.signal).catch(() => undefined);
    }
  }

  #tell(found: readonly string[], onTargets: (targets: readonly string[]) => void): void {
    if (this.#stop.signal.aborted) return;
    onTargets([...new Set([...this.#fixed, ...found])].slice(0, targetsMax));
  }

  close(): void {
    this.#stop.abort();
  }

  /** `undefined` when the name cannot be resolved: then what was known stays. */
  async #resolve(host: string, port: number): Promise<readonly string[] | undefined> {
    try {
      const addresses = await lookup(host, { all: true });
      this.#lastError = "";
      return addresses
        .map(({ address, family }) => (family === 6 ? `[${address}]` : address))
        .map((address) => `${address}:${String(port)}`)
        .sort();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (message !== this.#lastError) {
        this.#lastError = message;
        this.#log.warn({ event: "routers_unresolved", name: host, reason: message }, "DNS failed");
      }
      return undefined;
    }
  }
}
