/** Engines whose disaggregation protocols relays speak; the number of each on the wire is its index. */
export const relayEngines = ["vllm", "sglang", "tensorrt-llm"] as const;

/** One of `relayEngines`; also the name of the adapter that runs its protocol. */
export type RelayEngine = (typeof relayEngines)[number];

/** What a leg computes: all of a request, its prompt alone, or its answer from KV that another leg made. */
export const legRoles = ["whole", "prefill", "decode"] as const;

/** One of `legRoles`. */
export type LegRole = (typeof legRoles)[number];

/** One engine that a placement names. */
export interface PlacementLeg {
  readonly role: LegRole;
  readonly workerId: string;
  /** Engine's HTTP address, ip:port. */
  readonly address: string;
  /** First part of the member's epoch: start of the worker, ms since 1970. */
  readonly workerStartMs: number;
  /** Second part: the engine's life as that worker counts them, from 1. */
  readonly engineLife: number;
  readonly engine: RelayEngine;
  /**
   * What the engine's protocol needs beside its address, host:port: SGLang's bootstrap server as the decode engine
   * reaches it. Empty where the protocol needs nothing.
   */
  readonly bootstrap: string;
  /** Data-parallel rank to pin behind the engine's front end; absent for an engine with one rank. */
  readonly dpRank?: number;
}

/** How a stream is watched, and how often it may go on elsewhere. */
export interface GuardSettings {
  /** A stream counts as frozen when no token came for this many expected gaps between tokens … */
  readonly freezeItlMultiple: number;
  /** … and at least this long, ms. */
  readonly freezeMsMin: number;
  /** Most engines that one request may be continued on. */
  readonly migrationsMax: number;
}

/** What the router expected, for traces and for judging a stream. 0 where it expected nothing. */
export interface PlacementForecast {
  readonly promptTokens: number;
  /** Prompt tokens that the router believes are cached on the engine that prefills. */
  readonly cachedTokens: number;
  readonly prefillMs: number;
  readonly transferMs: number;
  readonly transferBytes: number;
  /** Time to first token from the router's answer, ms. */
  readonly ttftMs: number;
  /** Gap between tokens, ms. */
  readonly itlMs: number;
}

/** What a router decided for one request that passes a relay. */
export interface Placement {
  /** `<router instance>.<epoch>.<n>`. */
  readonly decisionId: string;
  /** Instance of the router that decided and owns the reservations. */
  readonly router: string;
  /** The one leg of a whole request, or the prefill leg and then the decode leg of a pair. */
  readonly legs: readonly PlacementLeg[];
  /** SHA-256 of the body as the relay gets it, 32 bytes. */
  readonly bodySha256: Uint8Array;
  readonly model: string;
  readonly pool: string;
  /** Empty for callers that name none. */
  readonly tenant: string;
  /** Whether the router put its own `cache_salt` into the body, once; any other one is a client's and refused. */
  readonly salted: boolean;
  /** Absent when the stream is not to be guarded. */
  readonly guard?: GuardSettings;
  readonly forecast: PlacementForecast;
  /** W3C context of the `kvmesh.route` span; empty when not traced. */
  readonly traceparent: string;
  /** Wall clock of the router, ms since 1970. */
  readonly issuedUnixMs: number;
  /** At most 30 s later. */
  readonly expiresUnixMs: number;
}

/** Longest life of a placement, ms: it covers a connection attempt and its retry, and no more. */
export const placementLifeMsMax = 30_000;

/**
 * What is wrong with a placement as a plan, or nothing: one whole leg, or a prefill and a decode leg of the same kind of
 * engine on different workers.
 */
export function findPlanFault(legs: readonly PlacementLeg[]): string | undefined {
  const [first, second] = legs;
  if (first === undefined || legs.length > 2) return `has ${String(legs.length)} legs, not 1 or 2`;
  if (second === undefined) {
    return first.role === "whole" ? undefined : `its only leg is ${first.role}, not whole`;
  }
  if (first.role !== "prefill" || second.role !== "decode") {
    return `its legs are ${first.role} and ${second.role}, not prefill and decode`;
  }
  if (first.engine !== second.engine) {
    return `its legs run ${first.engine} and ${second.engine}, which cannot hand KV to each other`;
  }
  if (first.address === second.address) return "both of its legs are the same engine";
  return undefined;
}
