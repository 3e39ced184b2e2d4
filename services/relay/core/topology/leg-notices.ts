import type { LegRole } from "../../../shared/core/placement-token/placement.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";

/** What happened to a leg, as the router that placed it hears it. Times are ms; counts are -1 where nobody said. */
export interface LegNotice {
  readonly decisionId: string;
  /** Router that owns the decision. */
  readonly router: string;
  readonly leg: LegRole;
  readonly workerId: string;
  /** Whether the leg is over; else its first token came. */
  readonly ended: boolean;
  readonly outcome: LegOutcome;
  readonly durationMs: number;
  readonly firstTokenMs: number;
  readonly ttftMs: number;
  /** From the end of prefill to decode's first step; 0 when nothing was transferred or it was not seen. */
  readonly transferMs: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
  /** HTTP status of the engine; 0 when none came. */
  readonly status: number;
  readonly localPrefill: boolean;
  /** Whether it is the decision's last one. */
  readonly last: boolean;
  /** When it happened, ms of the relay's clock. */
  readonly at: number;
}

/** A notice with its number. */
export interface NumberedNotice {
  readonly seq: number;
  readonly notice: LegNotice;
}

/**
 * Notices for one router, numbered and kept until they are acknowledged. At most `keptMax`; the oldest make room and are
 * counted: their reservations end by the access log or at their hard end.
 */
export class LegNotices {
  readonly #keptMax: number;
  readonly #kept: NumberedNotice[] = [];
  #seq = 0;
  /** Number of the last one handed out. */
  #sent = 0;
  #dropped = 0;

  constructor(keptMax: number) {
    this.#keptMax = keptMax;
  }

  /** Notices that are not acknowledged. */
  get size(): number {
    return this.#kept.length;
  }

  /** Notices that made room. */
  get dropped(): number {
    return this.#dropped;
  }

  add(notice: LegNotice): void {
    this.#kept.push({ seq: ++this.#seq, notice });
    if (this.#kept.length <= this.#keptMax) return;
    this.#kept.shift();
    this.#dropped++;
  }

  /** The next notices to send, oldest first, at most `max`. */
  next(max: number): readonly NumberedNotice[] {
    const from = this.#kept.findIndex(({ seq }) => seq > this.#sent);
    if (from < 0) return [];
    const batch = this.#kept.slice(from, from + max);
    this.#sent = batch[batch.length - 1]?.seq ?? this.#sent;
    return batch;
  }

  /** Everything up to this number has arrived. */
  acknowledged(seq: number): void {
    const first = this.#kept.findIndex((kept) => kept.seq > seq);
    this.#kept.splice(0, first < 0 ? this.#kept.length : first);
  }

  /** The stream broke: what is not acknowledged is sent again. */
  restart(): void {
    this.#sent = (this.#kept[0]?.seq ?? this.#seq + 1) - 1;
  }

  /** Takes all that is kept, for a router that is gone for good. */
  takeAll(): readonly LegNotice[] {
    return this.#kept.splice(0).map(({ notice }) => notice);
  }
}
