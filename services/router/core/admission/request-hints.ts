/** What a caller says about its request beside the request itself. */
export interface RequestHints {
  /** Empty when the caller names none. */
  readonly tenant: string;
  /** Name of a class, or a whole number that stands for one; empty when none is named. */
  readonly priority: string;
  /** Key of the conversation that the request belongs to; empty for none. */
  readonly session: string;
  readonly ttftMs: number | undefined;
  readonly itlMs: number | undefined;
}

/** Headers by what they say, ours first; then the names of llm-d's router and its older ones. */
export const hintHeaders = {
  tenant: ["x-kvmesh-tenant", "x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"],
  priority: ["x-kvmesh-priority", "x-llm-d-inference-objective", "x-gateway-inference-objective"],
  ttft: ["x-kvmesh-slo-ttft-ms", "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"],
  itl: ["x-kvmesh-slo-itl-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"],
  /** Also those by which agents and engines name a conversation. */
  session: ["x-kvmesh-session", "x-session-id", "session_id", "conversation_id"],
} as const;

/** Longer names are cut, so that a caller's text cannot fill memory. */
const nameLengthMax = 128;
/** Longest time that a caller may ask for, ms. */
const sloMsMax = 3_600_000;

/** Where the hints of a request that names none come from. */
export interface BodyHints {
  /** OpenAI `prompt_cache_key`, else `user`; empty for none. */
  readonly session: string;
}

const noHints: RequestHints = {
  tenant: "",
  priority: "",
  session: "",
  ttftMs: undefined,
  itlMs: undefined,
};

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/**
 * A name of at most `nameLengthMax` characters that shares no memory with the text it was cut from: engines keep a cut
 * string as a view that holds the whole text, which for a field of a body may be megabytes for as long as the name lives.
 */
function ownName(text: string): string {
  if (text === "") return "";
  return decoder.decode(encoder.encode(text.slice(0, nameLengthMax)));
}

function firstOf(
  get: (name: string) => string | undefined,
  names: readonly string[],
): string | undefined {
  for (const name of names) {
    const value = get(name);
    if (value !== undefined && value !== "") return ownName(value);
  }
  return undefined;
}

/** A time that can be meant; anything else counts as not said, since a hint refuses nothing. */
function milliseconds(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,9}(?:\.\d{1,6})?$/.test(text.trim())) return undefined;
  const value = Number(text);
  return value > 0 && value <= sloMsMax ? value : undefined;
}

/**
 * Reads a request's hints. The proxy has removed them from requests of callers that are not trusted, save the session, which
 * gives nobody anything. A session named in a header goes before one in the body.
 */
export function readHints(
  get: (name: string) => string | undefined,
  body: BodyHints | undefined,
): RequestHints {
  const tenant = firstOf(get, hintHeaders.tenant);
  const priority = firstOf(get, hintHeaders.priority);
  const session = firstOf(get, hintHeaders.session) ?? ownName(body?.session ?? "");
  const ttftMs = milliseconds(firstOf(get, hintHeaders.ttft));
  const itlMs = milliseconds(firstOf(get, hintHeaders.itl));
  if (
    tenant === undefined &&
    priority === undefined &&
    session === "" &&
    ttftMs === undefined &&
    itlMs === undefined
  ) {
    return noHints;
  }
  return { tenant: tenant ?? "", priority: priority ?? "", session, ttftMs, itlMs };
}

/**
 * The class that a priority stands for: the class of that name, or for a whole number the one with the highest priority
 * that is not above it, or the lowest of all. `undefined` when it says nothing.
 */
export function classFor(
  classes: readonly { readonly name: string; readonly priority: number }[],
  priority: string,
): string | undefined {
  if (priority === "") return undefined;
  const named = classes.find((c) => c.name === priority);
  if (named !== undefined) return named.name;
  if (!/^-?\d{1,9}$/.test(priority)) return undefined;
  const wanted = Number(priority);
  let best: { readonly name: string; readonly priority: number } | undefined;
  let lowest = classes[0];
  for (const c of classes) {
    if (lowest !== undefined && c.priority < lowest.priority) lowest = c;
    if (c.priority <= wanted && (best === undefined || c.priority > best.priority)) best = c;
  }
  return (best ?? lowest)?.name;
}
