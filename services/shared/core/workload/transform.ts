import { MeshError } from "../errors.ts";
import { SeededRandom } from "../random.ts";
import type { Workload, WorkloadRequest } from "./workload.ts";

function requirePositive(value: number, field: string): void {
  if (!(value > 0) || !Number.isFinite(value)) {
    throw new MeshError("invalid_request", `${field} is ${String(value)}; it must be above 0`, {
      field,
    });
  }
}

/**
 * The same workload with every length and the block size divided by `divisor`, so that a small engine
 * meets the same sharing. Block ids stay; the prompt rounds down, so that full blocks stay full, and the
 * answer rounds to nearest; neither goes below one token. Arrival times stay.
 * Throws `invalid_request` when `divisor` does not divide the block size.
 */
export function scale(workload: Workload, divisor: number): Workload {
  requirePositive(divisor, "divisor");
  const blockTokens = workload.blockTokens / divisor;
  if (!Number.isInteger(blockTokens)) {
    throw new MeshError(
      "invalid_request",
      `divisor ${String(divisor)} does not divide the block size ${String(workload.blockTokens)}`,
      { field: "divisor" },
    );
  }
  return {
    ...workload,
    blockTokens,
    requests: workload.requests.map((request) => {
      const inputTokens = Math.max(1, Math.floor(request.inputTokens / divisor));
      return {
        ...request,
        inputTokens,
        outputTokens: Math.max(1, Math.round(request.outputTokens / divisor)),
        blockIds: request.blockIds.slice(0, Math.ceil(inputTokens / blockTokens)),
      };
    }),
  };
}

/**
 * The requests that arrive in [startMs, startMs + durationMs), with times counted from `startMs`.
 * Sessions already running at the start go on with the blocks they then have.
 */
export function window(
  workload: Workload,
  { startMs, durationMs }: { startMs: number; durationMs: number },
): Workload {
  requirePositive(durationMs, "durationMs");
  return {
    ...workload,
    requests: workload.requests
      .filter((request) => request.atMs >= startMs && request.atMs < startMs + durationMs)
      .map((request) => ({ ...request, atMs: request.atMs - startMs })),
  };
}

/** The same requests `factor` times as fast: arrival times divided by `factor`. */
export function speed(workload: Workload, factor: number): Workload {
  requirePositive(factor, "factor");
  return {
    ...workload,
    requests: workload.requests.map((request) => ({ ...request, atMs: request.atMs / factor })),
  };
}

/**
 * Spreads requests that share one coarse timestamp evenly at random over the time to the next tick,
 * keeping their order. Mooncake's conversation trace was recorded in ticks of about 3 s, and sent as it
 * stands it would be a train of bursts that nobody produced. `tickMs` is the length of the last tick
 * and the longest stretch used; the same seed gives the same times, whole ms.
 */
export function spreadTicks(
  workload: Workload,
  { seed, tickMs }: { seed: number; tickMs: number },
): Workload {
  requirePositive(tickMs, "tickMs");
  const random = new SeededRandom(seed).fork("spread-ticks");
  const { requests } = workload;
  const spread: WorkloadRequest[] = [];
  let start = 0;
  while (start < requests.length) {
    const atMs = (requests[start] as WorkloadRequest).atMs;
    let end = start + 1;
    while (end < requests.length && (requests[end] as WorkloadRequest).atMs === atMs) end++;
    const toNextMs =
      end < requests.length ? (requests[end] as WorkloadRequest).atMs - atMs : tickMs;
    const stretchMs = Math.min(toNextMs, tickMs);
    const offsets = Array.from({ length: end - start }, () =>
      Math.floor(random.next() * stretchMs),
    );
    offsets.sort((a, b) => a - b);
    offsets.forEach((offsetMs, i) => {
      spread.push({ ...(requests[start + i] as WorkloadRequest), atMs: atMs + offsetMs });
    });
    start = end;
  }
  return { ...workload, requests: spread };
}

/**
 * The same workload with its block ids renumbered by a random permutation of all 32-bit numbers.
 * Nothing that depends on sharing alone may tell it from the original; tests use it for that.
 */
export function relabel(workload: Workload, seed: number): Workload {
  const random = new SeededRandom(seed).fork("relabel");
  const odd = random.int(0x8000_0000) * 2 + 1;
  const add = random.int(0x1_0000_0000);
  // Multiplying by an odd number, adding, and xor with a right shift are each one-to-one on 32 bits.
  const renumber = (id: number): number => {
    const mixed = (Math.imul(id, odd) + add) >>> 0;
    return (mixed ^ (mixed >>> 15)) >>> 0;
  };
  return {
    ...workload,
    requests: workload.requests.map((request) => ({
      ...request,
      blockIds: Uint32Array.from(request.blockIds, renumber),
    })),
  };
}
