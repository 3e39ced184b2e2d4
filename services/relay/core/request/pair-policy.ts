import type { RelayEngine } from "../../../shared/core/placement-token/placement.ts";
import type { RelayedBody } from "../body/relayed-body.ts";

/**
 * Why a request's prompt must be computed where it is answered although it was placed as a pair, or nothing.
 *
 * `choices`, `batch`: an engine makes several requests of it, and each would pull the same hand-off, which is good once.
 * `prompt_logprobs`: they come from computing the prompt, which decode would not do.
 */
export type UnpairedReason = "choices" | "batch" | "prompt_logprobs";

/** See `UnpairedReason`. */
export function findUnpairedReason(body: RelayedBody): UnpairedReason | undefined {
  const { object } = body;
  for (const field of ["n", "best_of"]) {
    const value = object.value(field);
    if (value !== null && value !== 1) return "choices";
  }
  if (object.value("use_beam_search") === true) return "choices";
  if (object.has("prompt_logprobs") || object.value("echo") === true) return "prompt_logprobs";
  return isBatch(body) ? "batch" : undefined;
}

/** Whether `prompt` is several prompts: a list of texts or of lists. */
export function isBatch(body: RelayedBody): boolean {
  if (body.kind !== "completion") return false;
  const prompt = body.object.find("prompt");
  const { bytes } = body.object;
  if (prompt === undefined || bytes[prompt.from] !== 0x5b) return false;
  for (let at = prompt.from + 1; at < prompt.to; at++) {
    const byte = bytes[at] as number;
    if (byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09) continue;
    return byte === 0x22 || byte === 0x5b;
  }
  return false;
}

/** Engines whose decode side takes such a request untouched. */
export function canRunUnpaired(engine: RelayEngine): boolean {
  return engine !== "sglang";
}
