import { isUtf8 as isWellFormed } from "node:buffer";
import { hash as hashOf } from "node:crypto";

/** SHA-256 of a body. */
export function hash(body: Uint8Array): Uint8Array {
  return hashOf("sha256", body, "buffer");
}

/** Whether bytes are well-formed UTF-8. */
export function isUtf8(bytes: Uint8Array): boolean {
  return isWellFormed(bytes);
}
