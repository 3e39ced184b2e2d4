import { toMeshError } from "../../../shared/edge/wire.ts";
import { isForwarded, type HeaderField } from "../../core/request/forwarded-headers.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { LegSlot, LocalPrefillReason } from "../../core/request/leg-outcome.ts";
import { LegCall } from "../leg-call.ts";
import { LegRecord } from "../leg-record.ts";
import { HandoffRoom } from "./handoff-room.ts";
import type { OpenRequest } from "./open-request.ts";

/** Largest answer of a prefill leg, bytes. */
const prefillAnswerBytesMax = 32 << 20;
/** A leg with a hand-off is given this long to reach its engine before it is stopped, ms. */
const handoffReachMs = 50;

/** What becomes of legs, for whoever runs the request. */
export interface LegsListener {
  /** A piece of the answer. */
  onAnswerData(record: LegRecord, chunk: Buffer): void;
  onAnswerEnd(record: LegRecord): void;
  /** The prefill leg has answered, whole. */
  onPrefillEnd(record: LegRecord): void;
  onFailed(slot: LegSlot, outcome: LegOutcome, why: string): void;
}

/** The legs of one request at their engines, and what routers hear of them. */
export class Legs {
  readonly #open: OpenRequest;
  readonly #listener: LegsListener;
  readonly #pending: { readonly record: LegRecord; readonly outcome: LegOutcome }[] = [];
  #prefill: LegRecord | undefined;
  #answer: LegRecord | undefined;
  #room: HandoffRoom | undefined;

  constructor(open: OpenRequest, listener: LegsListener) {
    this.#open = open;
    this.#listener = listener;
  }

  /** The leg whose answer passes, while it is open. */
  get answer(): LegRecord | undefined {
    return this.#answer;
  }

  /** Starts a leg. `local`: why decode prefills itself; `offset`: tokens of the answer that the client has. */
  send(
    slot: LegSlot,
    body: Uint8Array,
    of: { readonly local: LocalPrefillReason | undefined; readonly offset: number },
  ): void {
    const { local, offset } = of;
    const { parts, placement } = this.#open;
    const leg = this.#open.legOf(slot);
    if (leg === undefined) return;
    const now = parts.clock.now();
    const record = new LegRecord(slot, leg, now);
    this.#open.spans.legStarted(record, placement, { offset, local });
    if (slot === "prefill") {
      this.#open.timeline?.prefillStarted(now);
      this.#room = new HandoffRoom(parts.handoffs, leg.workerId, placement.forecast.promptTokens);
      this.#prefill = record;
    } else {
      this.#open.timeline?.answerStarted(now, local !== undefined);
      if (local !== undefined) {
        record.localPrefill = true;
        parts.metrics.localPrefills.inc({ reason: local });
      }
      this.#answer = record;
    }
    this.ask(record, body);
  }

  /** Sends a leg's request; of a leg that was stopped, once more. */
  ask(record: LegRecord, body: Uint8Array): void {
    const { clock, pools } = this.#open.parts;
    const { slot } = record;
    const { address } = record.leg;
    record.takeWhole();
    try {
      const pool = pools.take(address, clock.now());
      const call = new LegCall(
        {
          onHead: (status, headers) => {
            record.status = status;
            record.headers = headers;
          },
          onData: (chunk) => {
            this.#data(record, chunk);
          },
          onEnd: () => {
            this.#end(record);
          },
          onFailure: (outcome, why) => {
            this.#listener.onFailed(slot, outcome, why);
          },
        },
        () => {
          pools.release(address, clock.now());
        },
      );
      record.call = call;
      const path = slot === "answer" ? this.#open.path : this.#open.client.path;
      call.start(pool, { path, headers: this.#headers(record), body });
    } catch (error) {
      const { code, message } = toMeshError(error);
      if (code === "invariant_violated") throw error;
      const outcome: LegOutcome = code === "overloaded" ? "engine_error" : "stale";
      queueMicrotask(() => {
        this.#listener.onFailed(slot, outcome, message);
      });
    }
  }

  /** Tells the router that the prefill leg of a pair is not needed, so that nothing stays reserved for it. */
  skipPrefill(): void {
    const { parts, placement } = this.#open;
    const [leg, decode] = placement.legs;
    if (leg === undefined || decode === undefined) return;
    const now = parts.clock.now();
    const end = { ended: true, outcome: "not_started", ttftMs: 0, last: false, now } as const;
    parts.notify(new LegRecord("prefill", leg, now).notice(placement, end));
  }

  /** Prefill has answered: its hand-off waits to be pulled. */
  handoffMade(): void {
    this.#room?.made(this.#open.parts.clock.now());
  }

  /** The answer begins to pass. */
  answerBegan(): void {
    this.#room?.pulled();
  }

  /** Stops a leg at once; nothing more is heard of it. */
  stop(slot: LegSlot): void {
    this.#recordOf(slot)?.call?.abort();
  }

  /** Stops a leg; one with a hand-off once it has surely reached its engine. */
  abort(slot: LegSlot, handoff: boolean): void {
    const record = this.#recordOf(slot);
    const call = record?.call;
    if (record === undefined || call === undefined) return;
    const { clock } = this.#open.parts;
    const waitMs = record.startedAt + handoffReachMs - clock.now();
    if (!handoff || waitMs <= 0) call.abort();
    else {
      void clock.sleep(waitMs).then(() => {
        call.abort();
      });
    }
  }

  /** A leg is over, or will not be started. */
  ended(slot: LegSlot, outcome: LegOutcome, why: string): void {
    const { clock, metrics } = this.#open.parts;
    const now = clock.now();
    const leg = this.#open.legOf(slot);
    if (leg === undefined) return;
    const record = this.#recordOf(slot) ?? new LegRecord(slot, leg, now);
    this.#pending.push({ record, outcome });
    this.#open.spans.legEnded(record, { outcome, why, now });
    metrics.legs.inc({ engine: leg.engine, leg: leg.role, outcome });
    if (outcome === "done") {
      metrics.legSeconds.observe(
        { engine: leg.engine, leg: leg.role },
        (now - record.startedAt) / 1_000,
      );
    } else if (outcome !== "cancelled" && outcome !== "not_started") {
      this.#warn(record, outcome, why);
    }
    if (slot === "prefill") {
      this.#open.timeline?.prefillEnded(now, outcome === "done");
      this.#room?.prefillEnded(outcome);
      this.#prefill = undefined;
    } else {
      this.#open.timeline?.answerFailed(now);
      this.#room?.answerEnded(outcome);
      this.#answer = undefined;
    }
  }

  /** Tells routers of the legs that ended. `isLast`: no further leg of this decision follows. */
  tellEnded(isLast: boolean): void {
    const { parts, placement, ttftMs } = this.#open;
    const now = parts.clock.now();
    this.#pending.forEach(({ record, outcome }, index) => {
      const last = isLast && index === this.#pending.length - 1;
      parts.notify(record.notice(placement, { ended: true, outcome, ttftMs, last, now }));
    });
    this.#pending.length = 0;
  }

  #recordOf(slot: LegSlot): LegRecord | undefined {
    return slot === "prefill" ? this.#prefill : this.#answer;
  }

  #data(record: LegRecord, chunk: Buffer): void {
    // An engine may say more behind the end of its answer.
    if (this.#recordOf(record.slot) !== record) return;
    if (record.slot === "answer") {
      this.#listener.onAnswerData(record, chunk);
      return;
    }
    if (record.gather(chunk, prefillAnswerBytesMax)) return;
    this.stop("prefill");
    const why = `answered more than ${String(prefillAnswerBytesMax)} bytes`;
    this.#listener.onFailed("prefill", "no_handoff", why);
  }

  #end(record: LegRecord): void {
    if (this.#recordOf(record.slot) !== record) return;
    if (record.slot === "prefill") this.#listener.onPrefillEnd(record);
    else this.#listener.onAnswerEnd(record);
  }

  #headers(record: LegRecord): HeaderField[] {
    const { dpRank } = record.leg;
    const headers: HeaderField[] = [];
    let hasId = false;
    for (const field of this.#open.client.fields()) {
      if (!isForwarded(field[0])) continue;
      if (field[0] === "x-request-id") hasId = true;
      headers.push(field);
    }
    if (!hasId) headers.push(["x-request-id", this.#open.placement.decisionId]);
    if (dpRank !== undefined) headers.push(["x-data-parallel-rank", String(dpRank)]);
    headers.push(...this.#open.spans.fieldsOf(record));
    return headers;
  }

  #warn({ leg, status }: LegRecord, outcome: LegOutcome, why: string): void {
    this.#open.parts.log.warn(
      {
        event: "leg_failed",
        decision: this.#open.placement.decisionId,
        leg: leg.role,
        worker: leg.workerId,
        outcome,
        status,
        reason: why.slice(0, 300),
      },
      "a leg failed",
    );
  }
}
