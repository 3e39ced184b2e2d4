import type { PairCandidate } from "./pair-candidate.ts";

/** A request as admission looks for its room on one worker, without what it wants of its tokens. */
export interface SideAsk {
  readonly promptTokens: number;
  readonly expectedOutputTokens: number;
}

/**
 * What a pair's two workers are asked for: the one for the prompt and one token, the other for the whole context, which
 * comes to it as KV, and the answer. Admission counts half of an answer as KV that grows, so KV that comes whole is
 * entered twice.
 */
export function pairRoomAsks(
  pair: PairCandidate,
  request: { readonly promptTokens: number; readonly expectedOutputTokens: number },
): { readonly prefill: SideAsk; readonly decode: SideAsk } {
  const { promptTokens, expectedOutputTokens } = request;
  const movedTokens = promptTokens - pair.decodeMatchedTokens;
  return {
    prefill: { promptTokens, expectedOutputTokens: 1 },
    decode: { promptTokens, expectedOutputTokens: expectedOutputTokens + 2 * movedTokens },
  };
}
