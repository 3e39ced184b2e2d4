/**
 * Why a stream that should be guarded is not: the request asks for something whose answer cannot be continued from token
 * ids, its engine does not tell them, or no relay is there to guard it.
 */
export type UnguardedReason =
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
  | "engine"
  | "no_relay"
  | "not_read";

const quote = 0x22;
const backslash = 0x5c;
const decoder = new TextDecoder();

/** Values that ask for nothing. */
const nothing: ReadonlySet<string> = new Set(["null", "[]", "false"]);

/** What each field stands for when it asks for something. */
const byField: ReadonlyMap<string, UnguardedReason> = new Map([
  ["echo", "echo"],
  ["logprobs", "logprobs"],
  ["prompt_logprobs", "logprobs"],
  ["top_logprobs", "logprobs"],
  ["return_tokens_as_token_ids", "logprobs"],
  ["tools", "tools"],
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
  ["logits_processors", "presence_penalty"],
  ["prompt_embeds", "media"],
  ["suffix", "suffix"],
  ["use_beam_search", "choices"],
]);

/** A body of several prompts: a list of texts or of lists. */
const batch = /^\[\s*["[]/;
/** Parts of a message that are not text. */
const otherPart = /"type"\s*:\s*"(?!text"|input_text"|refusal")/;
/** Usage in each chunk, which a continuation would count anew. */
const usagePerChunk = /"continuous_usage_stats"\s*:\s*true/;

/**
 * Why the stream that a body of `/v1/completions` or `/v1/chat/completions` asks for cannot be guarded; nothing when it can,
 * as far as the request shows. The body has been read as JSON already; what it holds that is not is not looked for. Walks its
 * fields once: about 1 µs a KiB of text.
 */
export function findUnguardable(body: Uint8Array): UnguardedReason | undefined {
  let at = body.indexOf(0x7b) + 1;
  while (at > 0 && at < body.length) {
    const from = body.indexOf(quote, at);
    if (from < 0) return undefined;
    const to = stringEnd(body, from);
    const name = decoder.decode(body.subarray(from + 1, to - 1));
    const valueAt = skipSpace(body, body.indexOf(0x3a, to) + 1);
    const end = valueEnd(body, valueAt);
    const reason = reasonOf(unescaped(name), body, valueAt, end);
    if (reason !== undefined) return reason;
    at = end + 1;
  }
  return undefined;
}

function reasonOf(
  name: string,
  body: Uint8Array,
  from: number,
  to: number,
): UnguardedReason | undefined {
  const text = (): string => decoder.decode(body.subarray(from, to)).trim();
  switch (name) {
    case "n":
    case "best_of":
      return isOneOf(text(), "null", 1) ? undefined : "choices";
    case "presence_penalty":
      // It counts whether a token occurred in the answer, which a continuation would count twice.
      return isOneOf(text(), "null", 0) ? undefined : "presence_penalty";
    case "stream_options":
      return usagePerChunk.test(text()) ? "usage_per_chunk" : undefined;
    case "prompt":
      return body[from] === 0x5b && batch.test(text()) ? "batch" : undefined;
    case "messages":
      return otherPart.test(text()) ? "media" : undefined;
    default: {
      const reason = byField.get(name);
      return reason === undefined || nothing.has(text().replace(/\s/g, "")) ? undefined : reason;
    }
  }
}

function isOneOf(text: string, word: string, value: number): boolean {
  return text === word || Number(text) === value;
}

function unescaped(name: string): string {
  if (!name.includes("\\")) return name;
  try {
    return JSON.parse(`"${name}"`) as string;
  } catch {
    return name;
  }
}

/** Index behind the quote that ends the string begun at `from`. */
function stringEnd(body: Uint8Array, from: number): number {
  let end = body.indexOf(quote, from + 1);
  while (end > 0) {
    let backslashes = 0;
    while (body[end - 1 - backslashes] === backslash) backslashes++;
    if (backslashes % 2 === 0) return end + 1;
    end = body.indexOf(quote, end + 1);
  }
  return body.length;
}

/** Index behind the value at `from`: that of the comma or bracket which follows it. */
function valueEnd(body: Uint8Array, from: number): number {
  let depth = 0;
  let at = from;
  while (at < body.length) {
    const byte = body[at] as number;
    if (byte === quote) {
      at = stringEnd(body, at);
      continue;
    }
    if (byte === 0x7b || byte === 0x5b) depth++;
    else if (byte === 0x7d || byte === 0x5d) {
      if (depth === 0) return at;
      depth--;
    } else if (byte === 0x2c && depth === 0) return at;
    at++;
  }
  return body.length;
}

function skipSpace(body: Uint8Array, from: number): number {
  let at = from;
  while (at < body.length && (body[at] as number) <= 0x20) at++;
  return at;
}
