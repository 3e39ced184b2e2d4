import type { MonoMs, WorkerId } from "../../../../shared/core/ids.ts";
import { blockKey } from "./block-key.ts";

/** A request that runs. */
export interface LiveRequest {
  readonly decisionId: string;
  readonly workerId: WorkerId;
  readonly hashes: Uint32Array;
  /** Prompt tokens beyond the last full block. */
  readonly hasPartialBlock: boolean;
  /** Prompt tokens that were not known to be cached there. */
  readonly uncachedTokens: number;
  readonly placedAt: MonoMs;
  /** When its first token is expected. */
  readonly firstTokenAt: MonoMs;
}

interface LiveWorker {
  /** Running requests that have each block. */
  readonly blocks: Map<number, number>;
  partialBlocks: number;
  /** Requests before their first token. */
  readonly prefilling: Map<string, LiveRequest>;
}

/** A request older than this is dropped even if it still runs, ms (Dynamo's default). */
const ageMsMax = 300_000;

/**
 * Prompt blocks of the requests that run on each worker, shared ones counted once, and the prompt tokens that are still to
 * be computed there: what Dynamo calls active blocks and active prefill tokens. Bounded by the requests open.
 */
export class LiveBlocks {
  readonly #workers = new Map<WorkerId, LiveWorker>();
  /** In order of placement. */
  readonly #requests = new Map<string, LiveRequest>();
  #seesFirstTokens = false;

  /** Requests held. */
  get size(): number {
    return this.#requests.size;
  }

  /** A request was placed; drops what is too old. */
  add(request: LiveRequest): void {
    for (const [id, { placedAt }] of this.#requests) {
      if (request.placedAt - placedAt <= ageMsMax) break;
      this.remove(id);
    }
    this.remove(request.decisionId);
    this.#requests.set(request.decisionId, request);
    let worker = this.#workers.get(request.workerId);
    if (worker === undefined) {
      worker = { blocks: new Map(), partialBlocks: 0, prefilling: new Map() };
      this.#workers.set(request.workerId, worker);
    }
    const { hashes } = request;
    for (let i = 0; i < hashes.length / 2; i++) {
      const key = blockKey(hashes, i);
      worker.blocks.set(key, (worker.blocks.get(key) ?? 0) + 1);
    }
    if (request.hasPartialBlock) worker.partialBlocks++;
    worker.prefilling.set(request.decisionId, request);
  }

  /** Its prompt has been computed. */
  firstToken(decisionId: string): void {
    this.#seesFirstTokens = true;
    const request = this.#requests.get(decisionId);
    if (request !== undefined) this.#workers.get(request.workerId)?.prefilling.delete(decisionId);
  }

  /** It ended. */
  remove(decisionId: string): void {
    const request = this.#requests.get(decisionId);
    if (request === undefined) return;
    this.#requests.delete(decisionId);
    const worker = this.#workers.get(request.workerId);
    if (worker === undefined) return;
    const { hashes } = request;
    for (let i = 0; i < hashes.length / 2; i++) {
      const key = blockKey(hashes, i);
      const users = worker.blocks.get(key) ?? 0;
      if (users > 1) worker.blocks.set(key, users - 1);
      else worker.blocks.delete(key);
    }
    if (request.hasPartialBlock) worker.partialBlocks--;
    worker.prefilling.delete(decisionId);
  }

  /** Forgets a worker and what runs there. */
  forget(workerId: WorkerId): void {
    this.#workers.delete(workerId);
    for (const [id, request] of this.#requests) {
      if (request.workerId === workerId) this.#requests.delete(id);
    }
  }

  /** Blocks that would be live on a worker with one more prompt. O(its blocks). */
  projected(workerId: WorkerId, hashes: Uint32Array, hasPartialBlock: boolean): number {
    const count = hashes.length / 2;
    const own = hasPartialBlock ? 1 : 0;
    const worker = this.#workers.get(workerId);
    if (worker === undefined) return count + own;
    let fresh = 0;
    for (let i = 0; i < count; i++) if (!worker.blocks.has(blockKey(hashes, i))) fresh++;
    return worker.blocks.size + worker.partialBlocks + fresh + own;
  }

  /**
   * Prompt tokens still to be computed on a worker: all of a request's until its first token is seen, or, where nobody sees
   * any, until it is expected.
   */
  prefillTokens(workerId: WorkerId, now: MonoMs): number {
    let tokens = 0;
    for (const request of this.#workers.get(workerId)?.prefilling.values() ?? []) {
      if (this.#seesFirstTokens || now < request.firstTokenAt) tokens += request.uncachedTokens;
    }
    return tokens;
  }
}
