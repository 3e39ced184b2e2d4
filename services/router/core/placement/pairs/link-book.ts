import type { MonoMs } from "../../../../shared/core/ids.ts";
import { RecursiveLeastSquares } from "../../load/least-squares.ts";

/** What a link is taken for before anything moved over it. */
export interface LinkPrior {
  /** Until the first byte, ms. */
  readonly latencyMs: number;
  readonly bytesPerMs: number;
}

/** Settings of `LinkBook`. */
export interface LinkBookOptions {
  /** Between engines of one host. */
  readonly sameHost: LinkPrior;
  /** Between hosts. */
  readonly acrossHosts: LinkPrior;
  /** Links at most; the one heard of longest ago makes room. */
  readonly linksMax: number;
}

/** The two engines of a link, by their rows in the placement table. */
export interface LinkEnds {
  readonly from: number;
  readonly to: number;
  readonly isSameHost: boolean;
}

/** What a transfer is expected to take, ms. */
export interface TransferForecast {
  /** Until the bytes before it on the link are over. */
  waitMs: number;
  /** From its start to its end. */
  moveMs: number;
}

/** Sizes are learned in MiB, so that both numbers of a link are of the size of their features. */
const unitBytes = 1 << 20;
/** A usual transfer, MiB: 1,000 tokens of a model of 8 B. */
const usualUnits = 125;
/**
 * Observations that a prior counts for, by which it may be wrong: a domain's by ten times, since links of clusters differ so
 * much, and a link's by four, since a slow one may lie among fast ones. Few transfers overrule either.
 */
const domainPriorWeight = 0.01;
const linkPriorWeight = 0.06;
/** Weight of what was seen before each new observation: some 50 transfers count. */
const forgetting = 0.98;
/** Transfers are seen through an engine's steps, and no better than this, ms. */
const noiseMsMin = 2;
const noiseShare = 0.2;
/** As long as an engine that is given nothing keeps the speed that it is thought to have, ms. */
const unusedMsMax = 60_000;
/** More than any row number. */
const rowsMax = 1 << 20;

/** A link that a transfer was placed on; for `LinkBook.closed`. Once the link is forgotten nobody else sees it. */
export interface Link {
  readonly model: RecursiveLeastSquares;
  /** Bytes of transfers that are placed and not over. */
  inFlight: number;
  transfers: number;
  /** When a transfer was placed on it or seen last. */
  usedAt: number;
}

function learner(latencyMs: number, msPerUnit: number, weight: number): RecursiveLeastSquares {
  return new RecursiveLeastSquares({
    prior: [latencyMs, msPerUnit],
    scale: [1, usualUnits],
    priorWeight: weight,
    forgetting,
  });
}

/**
 * How fast KV moves from one engine to another, learned from the transfers that relays report: latency and time a byte of
 * each link by least squares with forgetting. A link that was never used is taken for what its topology domain (one host, or
 * the pool) has shown, and a domain for its prior. Also which bytes are under way, since a transfer waits for those before it.
 */
export class LinkBook {
  readonly #options: LinkBookOptions;
  readonly #domains: { readonly host: RecursiveLeastSquares; readonly pool: RecursiveLeastSquares };
  /** By `from × rowsMax + to`; the least recently used first. */
  readonly #links = new Map<number, Link>();

  constructor(options: LinkBookOptions) {
    this.#options = options;
    const domain = ({ latencyMs, bytesPerMs }: LinkPrior): RecursiveLeastSquares =>
      learner(latencyMs, unitBytes / bytesPerMs, domainPriorWeight);
    this.#domains = { host: domain(options.sameHost), pool: domain(options.acrossHosts) };
  }

  /** Links that something is known of. */
  get linkCount(): number {
    return this.#links.size;
  }

  /**
   * Expected times of a transfer of so many bytes, written to `into`. It begins `prefillMs` after the engine turned to its
   * prompt; until then the bytes of the prompts before it drain. Nothing moves in no time.
   */
  forecast(ends: LinkEnds, bytes: number, prefillMs: number, into: TransferForecast): void {
    const link = this.#links.get(ends.from * rowsMax + ends.to);
    const model = link?.model ?? this.#domain(ends.isSameHost);
    const msPerByte = model.coefficient(1) / unitBytes;
    into.moveMs = bytes > 0 ? model.coefficient(0) + bytes * msPerByte : 0;
    const before = link?.inFlight ?? 0;
    into.waitMs = bytes > 0 && before > 0 ? Math.max(0, before * msPerByte - prefillMs) : 0;
  }

  /** Latency, ms, and speed, bytes a ms, as known of a link. */
  known(ends: LinkEnds): LinkPrior {
    const link = this.#links.get(ends.from * rowsMax + ends.to);
    const model = link?.model ?? this.#domain(ends.isSameHost);
    return {
      latencyMs: model.coefficient(0),
      bytesPerMs: unitBytes / Math.max(1e-9, model.coefficient(1)),
    };
  }

  /** Bytes under way on a link. */
  inFlight({ from, to }: LinkEnds): number {
    return this.#links.get(from * rowsMax + to)?.inFlight ?? 0;
  }

  /** A transfer was placed; returns the link for its end, when the rows may be those of other engines. */
  opened(ends: LinkEnds, bytes: number, now: MonoMs): Link {
    const link = this.#touch(ends, now);
    link.inFlight += bytes;
    link.transfers++;
    return link;
  }

  /** A transfer is over, or will never be. Once for each `opened`, with its bytes. */
  closed(link: Link, bytes: number): void {
    link.transfers--;
    link.inFlight = link.transfers === 0 ? 0 : Math.max(0, link.inFlight - bytes);
  }

  /** A transfer took so long without its wait, ms. */
  observed(ends: LinkEnds, bytes: number, ms: number, now: MonoMs): void {
    if (!(bytes > 0 && ms > 0)) return;
    const features = [1, bytes / unitBytes];
    const noise = Math.max(noiseMsMin, ms * noiseShare);
    const link = this.#touch(ends, now);
    this.#domain(ends.isSameHost).observe(features, ms, noise);
    link.model.observe(features, ms, noise);
  }

  /**
   * Forgets links that were given nothing for long: what was seen of one thought slow may come from a fault that is over, and
   * nothing would ever show it. The next transfer is placed by what its domain has shown.
   */
  tick(now: MonoMs): void {
    for (const [key, { usedAt, transfers }] of this.#links) {
      if (now - usedAt < unusedMsMax) return;
      if (transfers === 0) this.#links.delete(key);
    }
  }

  /** The engine of a row has left. O(links). */
  forget(row: number): void {
    for (const key of this.#links.keys()) {
      if (Math.floor(key / rowsMax) === row || key % rowsMax === row) this.#links.delete(key);
    }
  }

  #domain(isSameHost: boolean): RecursiveLeastSquares {
    return isSameHost ? this.#domains.host : this.#domains.pool;
  }

  #touch({ from, to, isSameHost }: LinkEnds, now: MonoMs): Link {
    const key = from * rowsMax + to;
    const known = this.#links.get(key);
    if (known !== undefined) {
      this.#links.delete(key);
      this.#links.set(key, known);
      known.usedAt = now;
      return known;
    }
    if (this.#links.size >= this.#options.linksMax) this.#makeRoom();
    const domain = this.#domain(isSameHost);
    const created: Link = {
      model: learner(domain.coefficient(0), domain.coefficient(1), linkPriorWeight),
      inFlight: 0,
      transfers: 0,
      usedAt: now,
    };
    this.#links.set(key, created);
    return created;
  }

  /** The least recently used goes, an idle one where there is one among the first few. */
  #makeRoom(): void {
    let oldest: number | undefined;
    let looked = 0;
    for (const [key, { transfers }] of this.#links) {
      oldest ??= key;
      if (transfers === 0) {
        oldest = key;
        break;
      }
      if (++looked >= 16) break;
    }
    if (oldest !== undefined) this.#links.delete(oldest);
  }
}
