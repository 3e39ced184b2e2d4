import { MeshError } from "../../../shared/core/errors.ts";
import { editObject, type FieldEdit } from "../body/edit-object.ts";
import type { RelayedBody } from "../body/relayed-body.ts";
import type { ScannedObject } from "../body/scanned-object.ts";

/** Tokens of a completion whose request names no limit. */
const completionTokensDefault = 16;
const stopsMax = 64;

/** What a guarded request asks for, as far as the guard keeps to it itself. */
export interface GuardRequest {
  readonly kind: "completion" | "chat";
  /** Most tokens; null when only the model's context limits them. */
  readonly tokensMax: number | null;
  readonly tokensMin: number;
  readonly stops: readonly string[];
  readonly includesStop: boolean;
  /** Whether the client wants token ids in the chunks, and usage at the end. */
  readonly tellIds: boolean;
  readonly tellUsage: boolean;
}

function countOf(object: ScannedObject, name: string): number | null {
  const value = object.value(name);
  if (value === null) return null;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0) {
    throw new MeshError("invalid_request", `${name}: must be a whole number`, { field: name });
  }
  return value;
}

function stopsOf(object: ScannedObject): readonly string[] {
  const value = object.value("stop");
  if (value === null) return [];
  const list = typeof value === "string" ? [value] : value;
  if (
    !Array.isArray(list) ||
    list.length > stopsMax ||
    !list.every((one): one is string => typeof one === "string")
  ) {
    throw new MeshError("invalid_request", `stop: must be a text or at most ${stopsMax} of them`, {
      field: "stop",
    });
  }
  return list.filter((text) => text !== "");
}

/** Reads what the guard needs of a body. Throws `invalid_request` for fields that no engine would take either. */
export function readGuardRequest(body: RelayedBody): GuardRequest {
  const { object, kind } = body;
  const limit =
    kind === "chat"
      ? (countOf(object, "max_completion_tokens") ?? countOf(object, "max_tokens"))
      : countOf(object, "max_tokens");
  const isAbsent = kind === "completion" && object.find("max_tokens") === undefined;
  const options = object.value("stream_options");
  return {
    kind,
    tokensMax: isAbsent ? completionTokensDefault : limit,
    tokensMin: countOf(object, "min_tokens") ?? 0,
    stops: stopsOf(object),
    includesStop: object.value("include_stop_str_in_output") === true,
    tellIds: object.value("return_token_ids") === true,
    tellUsage:
      typeof options === "object" &&
      options !== null &&
      "include_usage" in options &&
      options.include_usage === true,
  };
}

/** The body with which a guarded stream begins: token ids are asked for, stop texts are not, see `StopMatcher`. */
export function guardedBody(body: RelayedBody): Uint8Array {
  const edits: FieldEdit[] = [{ name: "return_token_ids", json: "true" }];
  if (body.object.has("stop")) edits.push({ name: "stop", json: "null" });
  return editObject(body.object, edits);
}
