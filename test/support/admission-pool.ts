import {
  Admission,
  type AdmissionPort,
  type Attempt,
} from "../../services/router/core/admission/admission.ts";
import {
  admissionDefaults,
  type AdmissionOptions,
} from "../../services/router/core/admission/options.ts";
import type {
  Ask,
  AskEstimate,
  Refusal,
  Waiter,
} from "../../services/router/core/admission/waiter.ts";
import { monoMs, type MonoMs } from "../../services/shared/core/ids.ts";

/** A request of a test. */
export interface PoolRequest {
  readonly id: number;
  readonly tenant: string;
  readonly className: string;
  readonly costMs: number;
  readonly ttftMs?: number;
  /** Only this server may serve it. */
  readonly only?: number;
}

/** How a request of a test ended. */
export interface PoolEnd {
  readonly kind: "served" | "refused" | "cancelled";
  readonly request: PoolRequest;
  readonly at: number;
  readonly waitedMs: number;
  readonly refusal?: Refusal;
}

/** Bytes that each waiting request of a test holds. */
export const requestBytes = 100;

/**
 * Admission over a pool of servers that each work on one request after the other, with room for one more while they have
 * less than `roomMs` before them: the least that a pool can be, with its own books to check admission's against.
 */
export class AdmissionPool implements AdmissionPort<PoolRequest> {
  readonly admission: Admission<PoolRequest>;
  readonly ends: PoolEnd[] = [];
  readonly waiting = new Map<number, { waiter: Waiter<PoolRequest>; since: number }>();
  /** When each server is free. */
  readonly freeAt: number[];
  readonly #roomMs: number;
  now: MonoMs = monoMs(0);
  arrived = 0;

  constructor(options: {
    readonly servers: number;
    readonly roomMs: number;
    readonly admission?: Partial<AdmissionOptions>;
  }) {
    this.freeAt = new Array<number>(options.servers).fill(0);
    this.#roomMs = options.roomMs;
    this.admission = new Admission({ ...admissionDefaults, ...options.admission }, this);
  }

  /** Servers with room now that may serve a request. */
  hasRoom(only: number | undefined): boolean {
    return this.#server(only, this.now) !== undefined;
  }

  /** Moves time on, pumping whenever admission asks for it. */
  advanceTo(time: number): void {
    for (;;) {
      const wake = this.admission.wakeAt(this.now);
      if (wake === undefined || wake > time) break;
      this.now = monoMs(Math.max(wake, this.now));
      this.pump();
      // What is blocked without a time looks again a little later.
      if (this.admission.wakeAt(this.now) === this.now) this.now = monoMs(this.now + 1);
    }
    this.now = monoMs(Math.max(this.now, time));
    this.pump();
  }

  pump(): void {
    for (const { waiter, refusal } of this.admission.pump(this.now)) {
      const since = this.waiting.get(waiter.item.id)?.since ?? NaN;
      this.waiting.delete(waiter.item.id);
      this.#end("refused", waiter.item, this.now - since, refusal);
    }
  }

  arrive(request: PoolRequest): void {
    this.arrived++;
    const ask: Ask = {
      className: request.className,
      tenant: request.tenant,
      ttftMs: request.ttftMs,
      bytes: requestBytes,
      constrained: request.only !== undefined,
    };
    const arrival = this.admission.arrive(request, ask, this.now);
    if (arrival.kind === "refused") this.#end("refused", request, 0, arrival.refusal);
    else if (arrival.kind === "waits") {
      this.waiting.set(request.id, { waiter: arrival.waiter, since: this.now });
    }
  }

  cancel(id: number): void {
    const entry = this.waiting.get(id);
    if (entry === undefined) return;
    if (!this.admission.cancel(entry.waiter, this.now)) return;
    this.waiting.delete(id);
    this.#end("cancelled", entry.waiter.item, this.now - entry.since);
  }

  place(request: PoolRequest, now: MonoMs, waiter: Waiter<PoolRequest> | undefined): Attempt {
    const server = this.#server(request.only, now);
    if (server === undefined) {
      const soonest = Math.min(
        ...this.freeAt.filter((_, i) => request.only === undefined || i === request.only),
      );
      const roomAt = soonest - this.#roomMs;
      return { kind: "no_room", estimate: this.estimate(request), roomAt };
    }
    this.freeAt[server] = Math.max(this.freeAt[server] as number, now) + request.costMs;
    const since = waiter === undefined ? now : (this.waiting.get(request.id)?.since ?? now);
    this.waiting.delete(request.id);
    this.#end("served", request, now - since);
    return { kind: "answered", costMs: request.costMs, tokens: request.costMs };
  }

  estimate(request: PoolRequest): AskEstimate {
    return { costMs: request.costMs, firstTokenMs: request.costMs };
  }

  workerMsPerMs(): number {
    return this.freeAt.length;
  }

  promptMs(): number {
    return 50;
  }

  #server(only: number | undefined, now: MonoMs): number | undefined {
    let best: number | undefined;
    for (let i = 0; i < this.freeAt.length; i++) {
      if (only !== undefined && only !== i) continue;
      if ((this.freeAt[i] as number) - now > this.#roomMs) continue;
      if (best === undefined || (this.freeAt[i] as number) < (this.freeAt[best] as number))
        best = i;
    }
    return best;
  }

  #end(kind: PoolEnd["kind"], request: PoolRequest, waitedMs: number, refusal?: Refusal): void {
    this.ends.push({
      kind,
      request,
      at: this.now,
      waitedMs,
      ...(refusal === undefined ? {} : { refusal }),
    });
  }
}
