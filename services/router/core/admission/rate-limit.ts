import type { MonoMs } from "../../../shared/core/ids.ts";

/** What a tenant may use; 0 means no limit. */
export interface RateLimit {
  readonly requestsPerSecond: number;
  /** Prompt tokens that are not cached, plus expected answer tokens. */
  readonly tokensPerSecond: number;
}

/** How much may be used at once, in seconds of the rate. */
const burstSeconds = 5;

interface Bucket {
  requests: number;
  tokens: number;
  at: MonoMs;
}

/**
 * Token buckets of the tenants that have a limit. A bucket holds five seconds of its rate; a request may overdraw the
 * bucket of tokens, which then refuses until it is above zero again, so that prompts larger than a bucket can pass.
 */
export class RateLimits {
  readonly #limitOf: (tenant: string) => RateLimit | undefined;
  readonly #buckets = new Map<string, Bucket>();
  readonly #bucketsMax: number;

  /** `limitOf` gives a tenant's limit, `undefined` for none. Beyond `bucketsMax` tenants the longest unused are forgotten. */
  constructor(options: {
    readonly limitOf: (tenant: string) => RateLimit | undefined;
    readonly bucketsMax: number;
  }) {
    this.#limitOf = options.limitOf;
    this.#bucketsMax = options.bucketsMax;
  }

  /** Time until the tenant may send its next request, ms; 0 when it may now. */
  waitMs(tenant: string, now: MonoMs): number {
    const limit = this.#limitOf(tenant);
    if (limit === undefined) return 0;
    const bucket = this.#bucket(tenant, limit, now);
    const { requestsPerSecond, tokensPerSecond } = limit;
    const forRequest =
      requestsPerSecond > 0 ? Math.max(0, (1 - bucket.requests) / requestsPerSecond) : 0;
    const forTokens = tokensPerSecond > 0 ? Math.max(0, -bucket.tokens / tokensPerSecond) : 0;
    return Math.max(forRequest, forTokens) * 1_000;
  }

  /** The tenant's request was taken. */
  use(tenant: string, tokens: number, now: MonoMs): void {
    const limit = this.#limitOf(tenant);
    if (limit === undefined) return;
    const bucket = this.#bucket(tenant, limit, now);
    bucket.requests--;
    bucket.tokens -= tokens;
  }

  #bucket(tenant: string, limit: RateLimit, now: MonoMs): Bucket {
    const requestsMax = Math.max(1, limit.requestsPerSecond * burstSeconds);
    const tokensMax = limit.tokensPerSecond * burstSeconds;
    let bucket = this.#buckets.get(tenant);
    if (bucket === undefined) {
      if (this.#buckets.size >= this.#bucketsMax) {
        const [oldest] = this.#buckets.keys();
        if (oldest !== undefined) this.#buckets.delete(oldest);
      }
      bucket = { requests: requestsMax, tokens: tokensMax, at: now };
    } else this.#buckets.delete(tenant);
    this.#buckets.set(tenant, bucket);
    const seconds = Math.max(0, now - bucket.at) / 1_000;
    bucket.requests = Math.min(requestsMax, bucket.requests + seconds * limit.requestsPerSecond);
    bucket.tokens = Math.min(tokensMax, bucket.tokens + seconds * limit.tokensPerSecond);
    bucket.at = now;
    return bucket;
  }
}
