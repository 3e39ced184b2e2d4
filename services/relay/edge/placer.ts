import type { MeshErrorCode } from "../../shared/core/errors.ts";
import type { HeaderField } from "../core/request/forwarded-headers.ts";

/** A request that needs an engine. */
export interface PlaceAsk {
  readonly requestId: string;
  readonly path: string;
  readonly body: Uint8Array;
  /** What the router is told of the caller: tenant, class, targets, trace; names in lower case. */
  readonly fields: readonly HeaderField[];
  /** Workers that must not be chosen. */
  readonly excluded: readonly string[];
  readonly timeoutMs: number;
}

/** What a router said: a signed placement for the same body, or why there is none. */
export type PlaceAnswer =
  | { readonly kind: "placed"; readonly token: string }
  | {
      readonly kind: "refused";
      readonly outcome: "refused" | "no_router" | "timeout" | "cancelled";
      readonly code: MeshErrorCode;
      readonly message: string;
      /** When trying again makes sense, ms; absent when the router did not say. */
      readonly retryAfterMs?: number;
    };

/** Asks routers for placements. */
export interface Placer {
  /**
   * Asks for one placement. Never rejects. After `signal` aborts the router is told that nobody waits any more; a
   * placement that was already on its way is answered none the less and is for the caller to give back.
   */
  place(ask: PlaceAsk, signal: AbortSignal): Promise<PlaceAnswer>;
}
