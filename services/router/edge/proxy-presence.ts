import type { MonoMs } from "../../shared/core/ids.ts";

/**
 * Whether an Envoy depends on this router, so that a stop must give it time to see failed health checks. One does when
 * a discovery stream is open, or when anything (health check, ext_proc, access log) has come to the hot port within
 * `noticeMs`: an Envoy that asks less often would not notice in that time either.
 */
export class ProxyPresence {
  readonly #noticeMs: number;
  #discoveryStreams = 0;
  #heardAt: MonoMs | undefined;

  /** `noticeMs`: how long the router still answers while it says that it does not serve. */
  constructor(noticeMs: number) {
    this.#noticeMs = noticeMs;
  }

  /** A call came to the hot port. */
  heard(now: MonoMs): void {
    this.#heardAt = now;
  }

  /** So many discovery streams are open now. */
  discovery(streams: number): void {
    this.#discoveryStreams = streams;
  }

  /** How long to answer on at a stop, ms: `noticeMs` with an Envoy, 0 without one. */
  serveMs(now: MonoMs): number {
    const isHeard = this.#heardAt !== undefined && now - this.#heardAt <= this.#noticeMs;
    return isHeard || this.#discoveryStreams > 0 ? this.#noticeMs : 0;
  }
}
