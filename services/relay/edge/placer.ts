import type { MeshErrorCode } from "../../shared/core/errors.ts";

/** A request that needs another engine. */
export interface PlaceAsk {
  readonly requestId: string;
  readonly path: string;
  readonly body: Uint8Array;
  /** Workers that must not be chosen. */
  readonly excluded: readonly string[];
  readonly timeoutMs: number;
}

/** What a router said: a signed placement for the same body, or why there is none. */
export type PlaceAnswer =
  | { readonly kind: "placed"; readonly token: string }
  | {
      readonly kind: "refused";
      readonly outcome: "refused" | "no_router" | "timeout";
      readonly code: MeshErrorCode;
      readonly message: string;
    };

/** Asks routers for placements. Never rejects. */
export interface Placer {
  place(ask: PlaceAsk): Promise<PlaceAnswer>;
}
