import type { JsonObject } from "../request-body.ts";
import type { PullMode } from "../../core/kv-transfer/frames.ts";
import type { PeerAddress } from "./kv-peers.ts";

/** Engine whose side of disaggregated serving is spoken. */
export type Flavour = "vllm" | "sglang" | "tensorrt-llm";
/** Side of this engine. */
export type EngineRole = "prefill" | "decode" | "both";

/** The request is prefilled here and its KV handed on. */
export interface PrefillLeg {
  readonly kind: "prefill";
  /** Rendezvous with the decode engine (SGLang); others hand over through the answer. */
  readonly room: string | undefined;
  /** Tokens to compute whatever the body says; undefined leaves it to the body. */
  readonly outputTokensMax: number | undefined;
  /** The id by which the other side will know it; undefined: the engine's own. */
  readonly key: string | undefined;
}

/** The KV of the prompt comes from another engine. */
export interface DecodeLeg {
  readonly kind: "decode";
  readonly mode: PullMode;
  readonly key: string;
  /** Where the blocks are; rejects when it cannot be found out. */
  readonly address: () => Promise<PeerAddress>;
  /** Physical blocks there, in prompt order; empty unless mode is `blocks`. */
  readonly remoteBlocks: readonly number[];
  /** The prefill's number, for `usage`; undefined: it comes with the transfer. */
  readonly cachedTokens: number | undefined;
  /** Tokens drawn by the prefill; undefined: they come with the transfer, or are drawn here. */
  readonly firstTokens: readonly number[] | undefined;
  /** Own cached blocks are used instead of pulled. */
  readonly localHits: boolean;
  /** The hand-off has a lease that heartbeats extend. */
  readonly isLeased: boolean;
}

/** What a request asks of KV transfer. */
export type TransferRole =
  | { readonly kind: "whole" }
  | PrefillLeg
  | DecodeLeg
  /** A body that kills the engine core of the real engine. */
  | { readonly kind: "lethal" };

/** A prefill that ended and whose blocks are held. */
export interface HandedOff {
  readonly key: string;
  readonly blocks: readonly number[];
  readonly promptTokens: readonly number[];
  readonly cachedTokens: number;
  readonly firstToken: number;
  readonly finishReason: string;
  /** `max_tokens` of the body. */
  readonly outputTokensMax: number | undefined;
  readonly leg: PrefillLeg;
}

/** What a prefill leg adds to its answer. */
export interface HandoffFields {
  readonly top?: JsonObject;
  readonly choice?: JsonObject;
  readonly finishReason?: string;
}

/** One engine's protocol for prefill and decode legs. */
export interface TransferProtocol {
  /** Reads a body. Throws a 400 for what the real engine refuses. */
  read(json: JsonObject, bytes: Buffer): TransferRole;
  /** Fields of a prefill leg's answer; undefined when this ending hands nothing over. */
  handoffFields(handoff: HandedOff): HandoffFields | undefined;
}

/** A field that Python would take for true. */
export function isTruthy(value: unknown): boolean {
  if (Array.isArray(value)) return value.length > 0;
  if (typeof value === "object" && value !== null) return Object.keys(value).length > 0;
  return value !== undefined && value !== null && value !== false && value !== 0 && value !== "";
}

/** An object field, or undefined. */
export function objectField(body: JsonObject, field: string): JsonObject | undefined {
  const value = body[field];
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  return value as JsonObject;
}
