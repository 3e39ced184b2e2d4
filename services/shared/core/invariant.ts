import { MeshError } from "./errors.ts";

/**
 * Stops the process on a bug: throws `invariant_violated` when `condition` is false.
 * Never use it to check what a peer sent; that is `invalid_request`.
 */
export function invariant(condition: boolean, message: string): asserts condition {
  if (!condition) throw new MeshError("invariant_violated", message);
}
