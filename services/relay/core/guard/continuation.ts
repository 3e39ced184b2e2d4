import { editObject, type FieldEdit } from "../body/edit-object.ts";
import type { RelayedBody } from "../body/relayed-body.ts";
import type { ScannedObject } from "../body/scanned-object.ts";
import type { GuardRequest } from "./guard-request.ts";

/** Fields of a chat that mean the same in a completion; all others made the prompt, which is there as ids. */
const samplingFields: readonly string[] = [
  ...["model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "length_penalty"],
  ...["stop_token_ids", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens"],
  ...["allowed_token_ids", "bad_words", "user", "priority", "cache_salt", "request_id"],
  ...["frequency_penalty", "logit_bias", "include_stop_str_in_output"],
];

const encoder = new TextEncoder();

/** Spreads the bits of a number; for seeds, which must differ but need not be secret. */
function mixed(seed: number, count: number): number {
  let x = (seed ^ Math.imul(count, 0x9e3779b1)) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad) >>> 0;
  return (x ^ (x >>> 15)) >>> 0;
}

/**
 * The penalty on tokens by how often they were generated, as a bias: the continuation's engine counts its own from zero,
 * and the two add up to what one engine would have subtracted.
 */
function penaltyBias(object: ScannedObject, generated: Uint32Array): string | undefined {
  const penalty = object.value("frequency_penalty");
  if (typeof penalty !== "number" || penalty === 0 || generated.length === 0) return undefined;
  const given = object.value("logit_bias");
  const bias = new Map<string, number>(
    typeof given === "object" && given !== null
      ? Object.entries(given).filter((one): one is [string, number] => typeof one[1] === "number")
      : [],
  );
  for (const id of generated) {
    const key = String(id);
    bias.set(key, (bias.get(key) ?? 0) - penalty);
  }
  return JSON.stringify(Object.fromEntries(bias));
}

/**
 * The body that goes on with a stream from `promptIds` and `generated`, as a completion whatever it began as. Limits are
 * reduced by what is there; a seed is changed, since the engine's generator begins anew and would repeat its first draws.
 * `tokensLeft`: null when only the context limits the answer.
 */
export function continuationBody(
  body: RelayedBody,
  request: GuardRequest,
  state: {
    readonly promptIds: Uint32Array;
    readonly generated: Uint32Array;
    readonly tokensLeft: number | null;
  },
): Uint8Array {
  const { object } = body;
  const { promptIds, generated, tokensLeft } = state;
  const ids = `[${[promptIds, generated]
    .filter(({ length }) => length > 0)
    .map((list) => list.join(","))
    .join(",")}]`;
  const edits: FieldEdit[] = [
    { name: "prompt", json: ids },
    { name: "max_tokens", json: String(tokensLeft) },
    { name: "stream", json: "true" },
    { name: "return_token_ids", json: "true" },
  ];
  if (request.tokensMin > 0) {
    const left = Math.max(0, request.tokensMin - generated.length);
    edits.push({ name: "min_tokens", json: String(left) });
  }
  const seed = object.value("seed");
  if (typeof seed === "number") {
    edits.push({ name: "seed", json: String(mixed(seed, generated.length)) });
  }
  const bias = penaltyBias(object, generated);
  if (bias !== undefined) edits.push({ name: "logit_bias", json: bias });
  if (body.kind === "completion") {
    for (const name of ["stop", "truncate_prompt_tokens", "stream_options"]) {
      if (object.has(name)) edits.push({ name, json: "null" });
    }
    return editObject(object, edits);
  }
  const set = new Set(edits.map(({ name }) => name));
  const parts = edits.map(({ name, json }) => `"${name}":${json}`);
  for (const name of samplingFields) {
    const raw = set.has(name) ? undefined : object.raw(name);
    if (raw !== undefined) parts.push(`"${name}":${raw}`);
  }
  return encoder.encode(`{${parts.join(",")}}`);
}

/** The path on which a stream is continued: that of completions beside the one it began on. */
export function continuationPath(path: string): string {
  return path.replace("/chat/completions", "/completions");
}
