import type { Decision } from "./decision.ts";

/** The newest decisions by id and by request, at most `decisionsMax`; the oldest goes first. */
export class DecisionLog {
  readonly #byId = new Map<string, Decision>();
  readonly #byRequest = new Map<string, Decision>();
  readonly #decisionsMax: number;
  #last: Decision | undefined;

  constructor(options: { readonly decisionsMax: number }) {
    this.#decisionsMax = options.decisionsMax;
  }

  /** Number kept. */
  get size(): number {
    return this.#byId.size;
  }

  /** The newest decision. */
  get last(): Decision | undefined {
    return this.#last;
  }

  /** Keeps a decision; a request decided twice is found under its newest. */
  add(decision: Decision): void {
    this.#byId.set(decision.id, decision);
    this.#byRequest.set(decision.requestId, decision);
    this.#last = decision;
    if (this.#byId.size <= this.#decisionsMax) return;
    const oldest = this.#byId.values().next().value;
    if (oldest === undefined) return;
    this.#byId.delete(oldest.id);
    if (this.#byRequest.get(oldest.requestId) === oldest) this.#byRequest.delete(oldest.requestId);
  }

  /** By decision id. */
  byId(id: string): Decision | undefined {
    return this.#byId.get(id);
  }

  /** By request id. */
  byRequest(requestId: string): Decision | undefined {
    return this.#byRequest.get(requestId);
  }
}
