import type { PlacementLeg, RelayEngine } from "../../../shared/core/placement-token/placement.ts";
import type { RelayedBody } from "../body/relayed-body.ts";

/** What the engine that prefills said. */
export interface PrefillUsage {
  /** Prompt length; -1 when it did not say. */
  readonly promptTokens: number;
  /** Of it, tokens found in its cache; -1 when it did not say. */
  readonly cachedTokens: number;
}

/** What the answer of a prefill leg means. */
export type PrefillReading =
  /** KV is there: the body with which decode pulls it. Good for one use. */
  | {
      readonly kind: "handoff";
      readonly decodeBody: Uint8Array;
      readonly usage: PrefillUsage;
      /** Blocks of KV that it offers; absent where the engine does not say. */
      readonly blocks?: number;
    }
  /** The answer is complete already: what the client gets, as one whole answer. */
  | { readonly kind: "final"; readonly answer: Uint8Array; readonly usage: PrefillUsage }
  /** Nothing to go on with. */
  | { readonly kind: "none"; readonly why: string };

/** What an adapter is given to plan a pair. */
export interface PairRequest {
  readonly body: RelayedBody;
  readonly prefill: PlacementLeg;
  readonly decode: PlacementLeg;
  /** Random number below 2^31 that no live request has; engines know the pair by it. */
  readonly room: number;
}

/** The bodies with which a pair begins. */
export interface PairStart {
  readonly prefillBody: Uint8Array;
  /** With engines whose legs run at once; else decode's body comes from the prefill leg's answer. */
  readonly decodeBody?: Uint8Array;
}

/** How one kind of engine hands KV from prefill to decode. Pure. */
export interface EngineAdapter {
  readonly name: RelayEngine;
  /** Whether decode begins when prefill has answered, or with it. */
  readonly order: "sequential" | "concurrent";
  /** Whether its decode engines take a request without KV from elsewhere and prefill it themselves. */
  readonly canPrefillOnDecode: boolean;
  /** How KV travels, as traces name it; absent where that depends on how the engine was started. */
  readonly transport?: string;
  /** Whether answers carry token ids when asked, so that streams can be continued. */
  readonly tellsTokenIds: boolean;
  start(request: PairRequest): PairStart;
  /** Reads the whole answer of the prefill leg, status 200. */
  readPrefill(request: PairRequest, answer: Uint8Array): PrefillReading;
}
