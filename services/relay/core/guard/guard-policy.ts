import type { GuardSettings } from "../../../shared/core/placement-token/placement.ts";
import type { RelayedBody } from "../body/relayed-body.ts";
import { isBatch } from "../request/pair-policy.ts";

/**
 * Why a stream runs unguarded: nobody asked, the engine does not tell token ids, or the request asks for something whose
 * answer cannot be continued from token ids. The last ones show only in the answer; `status` is an engine's refusal.
 */
export type UnguardedReason =
  | "not_asked"
  | "engine"
  | "choices"
  | "batch"
  | "echo"
  | "logprobs"
  | "tools"
  | "response_format"
  | "reasoning"
  | "presence_penalty"
  | "media"
  | "usage_per_chunk"
  | "suffix"
  | "no_token_ids"
  | "unreadable"
  | "status";

/** Fields that, with any value but null, stand for a reason. */
const byField: readonly (readonly [string, UnguardedReason])[] = [
  ["prompt_logprobs", "logprobs"],
  ["top_logprobs", "logprobs"],
  ["tool_choice", "tools"],
  ["functions", "tools"],
  ["function_call", "tools"],
  ["response_format", "response_format"],
  ["structured_outputs", "response_format"],
  ["guided_json", "response_format"],
  ["guided_regex", "response_format"],
  ["guided_choice", "response_format"],
  ["guided_grammar", "response_format"],
  ["structural_tag", "response_format"],
  ["reasoning_effort", "reasoning"],
  ["thinking", "reasoning"],
  ["prompt_embeds", "media"],
  ["suffix", "suffix"],
  ["return_tokens_as_token_ids", "logprobs"],
  ["logits_processors", "presence_penalty"],
];

/** Parts of a message that are not text. */
const otherPart = /"type"\s*:\s*"(?!text"|input_text"|refusal")/;

/** Why the stream that a body asks for cannot be guarded; nothing when it can. */
export function findUnguardedReason(
  body: RelayedBody,
  guard: GuardSettings | undefined,
  engineTellsTokenIds: boolean,
): UnguardedReason | undefined {
  if (guard === undefined) return "not_asked";
  if (!engineTellsTokenIds) return "engine";
  const { object, kind } = body;
  for (const field of ["n", "best_of"]) {
    const value = object.value(field);
    if (value !== null && value !== 1) return "choices";
  }
  if (object.value("use_beam_search") === true) return "choices";
  if (isBatch(body)) return "batch";
  if (object.value("echo") === true) return "echo";
  const logprobs = object.value("logprobs");
  if (logprobs !== null && logprobs !== false) return "logprobs";
  for (const [field, reason] of byField) if (object.has(field)) return reason;
  const tools = object.find("tools");
  if (tools !== undefined && object.text(tools) !== "null" && object.text(tools) !== "[]") {
    return "tools";
  }
  const presence = object.value("presence_penalty");
  // It counts whether a token occurred in the answer, which a continuation would count twice.
  if (presence !== null && presence !== 0) return "presence_penalty";
  const options = object.value("stream_options");
  if (
    typeof options === "object" &&
    options !== null &&
    "continuous_usage_stats" in options &&
    options.continuous_usage_stats === true
  ) {
    return "usage_per_chunk";
  }
  if (kind === "chat" && otherPart.test(object.raw("messages") ?? "")) return "media";
  return undefined;
}
