import type { RateLimit } from "./rate-limit.ts";

/** A class of requests. */
export interface AdmissionClass {
  readonly name: string;
  /** Higher goes first, always; a number in the priority header picks the class with the nearest priority below. */
  readonly priority: number;
  /** Share among classes of one priority, > 0. */
  readonly weight: number;
  /** Time to first token that its requests ask for when they name none, ms; 0 for none. */
  readonly ttftMs: number;
  /** Time between tokens likewise, ms; 0 for none. */
  readonly itlMs: number;
  /** Longest wait of its requests, ms; 0 refuses at once when no worker has room. */
  readonly waitMsMax: number;
}

/** What one tenant gets. */
export interface TenantTerms extends RateLimit {
  /** Share among the tenants of a class, > 0. */
  readonly weight: number;
}

/** Settings of admission. */
export interface AdmissionOptions {
  /** At least one. */
  readonly classes: readonly AdmissionClass[];
  /** Class of requests that name none, or one that is unknown. */
  readonly defaultClass: string;
  readonly tenants: ReadonlyMap<string, TenantTerms>;
  /** Terms of everyone else. */
  readonly tenantDefault: TenantTerms;
  /** Tenants with an account of their own, in each class. */
  readonly tenantsMax: number;
  /** Requests that may wait in one pool. */
  readonly countMax: number;
  /** Bytes that they may hold. */
  readonly bytesMax: number;
  /** Share of both that one tenant may have, 0 to 1. */
  readonly tenantShareMax: number;
  /** A class whose queue has not been empty for so long, or for thirty usual prompts, is overloaded, ms: its waits are kept short from then on. */
  readonly burstMs: number;
  /** Longest predicted wait in an overloaded class, ms; 0 follows the usual time of a prompt. */
  readonly overloadWaitMs: number;
}

/** One class for all, tenants by name with equal weights, no rate limits. */
export const admissionDefaults: AdmissionOptions = {
  classes: [{ name: "default", priority: 0, weight: 1, ttftMs: 0, itlMs: 0, waitMsMax: 5_000 }],
  defaultClass: "default",
  tenants: new Map(),
  tenantDefault: { weight: 1, requestsPerSecond: 0, tokensPerSecond: 0 },
  tenantsMax: 4_096,
  countMax: 4_096,
  bytesMax: 256 * 1024 * 1024,
  tenantShareMax: 0.5,
  burstMs: 2_000,
  overloadWaitMs: 0,
};
