import type { Workload, WorkloadRequest } from "../../../shared/core/workload/workload.ts";

/** Ids stay below this, as those of every real vocabulary do. */
const tokenMask = 0xff_ffff;

/** Finaliser of MurmurHash3: one-to-one on 32 bits. */
function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

const blockLane = 0x3c6ef372;
const ownLane = 0x78dde6e4;

/**
 * Turns a workload into prompts of token ids without text: equal block ids give equal tokens, different ones
 * different tokens, and what lies past the named blocks belongs to one request alone. The ids themselves play
 * no part, only when they first appear.
 */
export class TokenPrompts {
  readonly #workload: Workload;
  readonly #ordinals = new Map<number, number>();

  constructor(workload: Workload) {
    this.#workload = workload;
    for (const { blockIds } of workload.requests) {
      for (let b = 0; b < blockIds.length; b++) {
        const id = blockIds[b] as number;
        if (!this.#ordinals.has(id)) this.#ordinals.set(id, this.#ordinals.size);
      }
    }
  }

  /** Tokens of the request at `index`; throws `RangeError` where there is none. O(tokens). */
  tokens(index: number): Uint32Array {
    const { requests, blockTokens } = this.#workload;
    const request: WorkloadRequest | undefined = requests[index];
    if (request === undefined) throw new RangeError(`no request ${index} in the workload`);
    const { blockIds, inputTokens } = request;
    const out = new Uint32Array(inputTokens);
    let at = 0;
    for (let b = 0; b < blockIds.length && at < inputTokens; b++) {
      const ordinal = this.#ordinals.get(blockIds[b] as number) as number;
      const start = mix(ordinal ^ blockLane);
      const end = Math.min(inputTokens, at + blockTokens);
      // The first two tokens carry all 32 bits of the start, so different blocks always differ.
      for (let i = 0; at < end; at++, i++) {
        out[at] = i === 0 ? start >>> 16 : i === 1 ? start & 0xffff : draw(start, i);
      }
    }
    const own = mix(index ^ ownLane);
    for (let i = 0; at < inputTokens; at++, i++) out[at] = draw(own, i);
    return out;
  }
}

function draw(start: number, i: number): number {
  return mix(start + Math.imul(i, 0x9e3779b1)) & tokenMask;
}
