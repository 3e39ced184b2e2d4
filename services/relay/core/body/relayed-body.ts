import { MeshError } from "../../../shared/core/errors.ts";
import type { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { reservedFields, saltField } from "../../../shared/core/reserved-fields.ts";
import { scanDocument, type ScannedObject } from "./scanned-object.ts";

/** Kinds of requests that a relay carries. */
export type RequestKind = "completion" | "chat";

/** A request's body, judged and with its fields found. */
export interface RelayedBody {
  readonly kind: RequestKind;
  readonly object: ScannedObject;
  /** Whether the answer is asked for as a stream. */
  readonly stream: boolean;
}

/** The kind of request that a path asks for; `undefined` for paths that relays do not carry. */
export function kindOfPath(path: string): RequestKind | undefined {
  const [route = ""] = path.split("?", 1);
  if (route.endsWith("/v1/chat/completions")) return "chat";
  return route.endsWith("/v1/completions") ? "completion" : undefined;
}

/**
 * Reads a body. Throws `invalid_request` for one that is no JSON object, that sets what only the mesh may set (also when
 * the name is spelled with escapes or occurs twice), or whose `stream` is no truth. `salted`: the router put one
 * `cache_salt` in. `bytes` are well-formed UTF-8.
 */
export function readBody(
  json: JsonScanner,
  bytes: Uint8Array,
  facts: { readonly kind: RequestKind; readonly salted: boolean },
): RelayedBody {
  const object = scanDocument(json, bytes);
  if (object === undefined) {
    throw new MeshError("invalid_request", "the body is no JSON object, or nested too deep");
  }
  let salts = facts.salted ? 1 : 0;
  for (const { name } of object.fields) {
    if (!reservedFields.has(name)) continue;
    if (name === saltField && salts > 0) {
      salts--;
      continue;
    }
    throw new MeshError("invalid_request", `${name}: is set by the mesh alone; leave it out`, {
      field: name,
    });
  }
  const stream = object.value("stream") ?? false;
  if (typeof stream !== "boolean") {
    throw new MeshError("invalid_request", "stream: must be true or false", { field: "stream" });
  }
  return { kind: facts.kind, object, stream };
}
