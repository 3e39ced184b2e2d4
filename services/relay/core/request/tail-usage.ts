/** Tokens that an answer says it took; -1 where it does not say. */
export interface TailUsage {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
}

/** Nothing said. */
export const noUsage: TailUsage = { promptTokens: -1, cachedTokens: -1, generatedTokens: -1 };

const decoder = new TextDecoder();
const name = '"usage":';

function countIn(value: unknown): number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 ? value : -1;
}

/** Reads the last usage object in a piece of an answer; `noUsage` when there is none, or only a part of one. */
export function readTailUsage(piece: Uint8Array): TailUsage {
  const text = decoder.decode(piece);
  const at = text.lastIndexOf(name);
  const open = at < 0 ? -1 : text.indexOf("{", at);
  if (open < 0) return noUsage;
  let depth = 0;
  for (let i = open; i < text.length; i++) {
    const character = text[i];
    if (character === "{") depth++;
    else if (character === "}" && --depth === 0) return parseUsage(text.slice(open, i + 1));
  }
  return noUsage;
}

function parseUsage(json: string): TailUsage {
  let usage: Record<string, unknown>;
  try {
    usage = JSON.parse(json) as Record<string, unknown>;
  } catch {
    return noUsage;
  }
  const details = usage["prompt_tokens_details"];
  const cached =
    typeof details === "object" && details !== null && "cached_tokens" in details
      ? details.cached_tokens
      : undefined;
  return {
    promptTokens: countIn(usage["prompt_tokens"]),
    cachedTokens: countIn(cached),
    generatedTokens: countIn(usage["completion_tokens"]),
  };
}
