import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";

/** Properties of one direction of a link. */
export interface LinkShape {
  /** Bytes per second; 0 is as fast as the sockets are. */
  readonly bytesPerS: number;
  /** Time from the last bit sent to the last bit received, ms. */
  readonly latencyMs: number;
}

/**
 * Token bucket and delay of one link: when a message of so many bytes may leave, and when it is there. The bucket
 * holds `burstBytes` at most, so that an idle link does not save up. Deterministic; messages are in order.
 */
export class LinkShaper {
  #shape: LinkShape;
  readonly #burstBytes: number;
  /** When the link has sent all it was given; may lie in the past by the length of one burst. */
  #busyUntil = -Infinity;

  constructor(shape: LinkShape, burstBytes = 64 * 1024) {
    this.#shape = shape;
    this.#burstBytes = burstBytes;
  }

  get isShaped(): boolean {
    return this.#shape.bytesPerS > 0 || this.#shape.latencyMs > 0;
  }

  /** 0 is unlimited. */
  get bytesPerS(): number {
    return this.#shape.bytesPerS;
  }

  get latencyMs(): number {
    return this.#shape.latencyMs;
  }

  /** Applies to messages sent from now on. */
  reshape(shape: LinkShape): void {
    this.#shape = shape;
  }

  /** Books a message; returns when it arrives. */
  send(bytes: number, now: MonoMs): MonoMs {
    const { bytesPerS, latencyMs } = this.#shape;
    if (bytesPerS <= 0) return monoMs(now + latencyMs);
    const burstMs = (this.#burstBytes / bytesPerS) * 1_000;
    const from = Math.max(this.#busyUntil, now - burstMs);
    this.#busyUntil = from + (bytes / bytesPerS) * 1_000;
    return monoMs(Math.max(now, this.#busyUntil) + latencyMs);
  }
}
