import { decodeKvEventBatch } from "./kv-events/decode.ts";
import type { DecodeFailure, KvEventBatch } from "./kv-events/kv-event.ts";

/** Where the stream of one engine rank stands. */
export type StreamPhase =
  /** No subscription: nothing is applied. */
  | "idle"
  /** Old batches are being fetched; live ones wait. */
  | "replaying"
  /** Live batches are applied as they come. */
  | "live";

/** What can happen to the stream. */
export type StreamInput =
  /** The subscription is up, for the first time or again; something may have been missed before. */
  | { readonly kind: "connected" }
  /** The subscription was lost. */
  | { readonly kind: "disconnected" }
  /** The engine is known to be another process than before. */
  | { readonly kind: "reset" }
  | { readonly kind: "live"; readonly seq: number; readonly payload: Uint8Array }
  /** One batch of the replay with this id. */
  | {
      readonly kind: "replayed";
      readonly replayId: number;
      readonly seq: number;
      readonly payload: Uint8Array;
    }
  | { readonly kind: "replay_ended"; readonly replayId: number }
  /** No replay socket, or it did not answer in time. */
  | { readonly kind: "replay_failed"; readonly replayId: number };

/** Why everything known was given up. */
export type ForgetReason =
  | "engine_restarted"
  | "reset"
  /** The engine no longer had the missing batches. */
  | "replay_truncated"
  /** The missing batches could not be fetched. */
  | "gap"
  /** A batch was unreadable and fetching it again did not help. */
  | "garbage";

/** What the owner of the stream must do, in order. */
export type StreamEffect =
  | { readonly kind: "apply"; readonly batch: KvEventBatch }
  | { readonly kind: "forget"; readonly reason: ForgetReason }
  | { readonly kind: "request_replay"; readonly replayId: number; readonly fromSeq: number }
  /** The sequence began again with newer batches: the engine is in another life. */
  | { readonly kind: "engine_restarted" }
  | { readonly kind: "undecodable"; readonly failure: DecodeFailure; readonly seq: number }
  /** A batch that was applied before, or came when nothing may be applied. */
  | { readonly kind: "dropped"; readonly reason: "duplicate" | "not_connected" | "buffer_full" }
  | { readonly kind: "gap"; readonly fromSeq: number; readonly toSeq: number };

type Action =
  | "ignore"
  | "start_replay"
  | "stop"
  | "begin_again"
  | "drop"
  | "buffer"
  | "take_live"
  | "take_replayed"
  | "finish_replay";

/** Every state and every input; the README shows this table. */
export const streamTransitions: Readonly<
  Record<StreamPhase, Readonly<Record<StreamInput["kind"], Action>>>
> = {
  idle: {
    connected: "start_replay",
    disconnected: "ignore",
    reset: "begin_again",
    live: "drop",
    replayed: "ignore",
    replay_ended: "ignore",
    replay_failed: "ignore",
  },
  replaying: {
    connected: "start_replay",
    disconnected: "stop",
    reset: "begin_again",
    live: "buffer",
    replayed: "take_replayed",
    replay_ended: "finish_replay",
    replay_failed: "finish_replay",
  },
  live: {
    connected: "start_replay",
    disconnected: "stop",
    reset: "begin_again",
    live: "take_live",
    replayed: "ignore",
    replay_ended: "ignore",
    replay_failed: "ignore",
  },
};

/** Bounds of the live batches that wait during a replay. */
export interface StreamLimits {
  readonly bufferedBatchesMax: number;
  readonly bufferedBytesMax: number;
  /** Replays without a single new batch before the gap is given up. */
  readonly replayAttemptsMax: number;
}

/** Room for ten seconds of a busy engine. */
export const defaultStreamLimits: StreamLimits = {
  bufferedBatchesMax: 65_536,
  bufferedBytesMax: 64 * 1024 * 1024,
  replayAttemptsMax: 2,
};

interface Waiting {
  readonly seq: number;
  readonly payload: Uint8Array;
}

/**
 * Turns what arrives from an engine's event sockets into a gapless sequence of batches: replay on
 * connect, replay on a gap, forget when a gap cannot be filled or the engine began again.
 *
 * An old sequence number means a restart only when its batch was published later than what was applied
 * last; otherwise it is a batch that came by both sockets, and is dropped. An unreadable batch is a gap.
 * Deterministic; every input is answered with the effects to carry out in order.
 */
export class EventStream {
  readonly #limits: StreamLimits;
  #phase: StreamPhase = "idle";
  /** Last batch applied or given up, −1 before the first. */
  #lastSeq = -1;
  #lastPublishedSeconds = -Infinity;
  #replayId = 0;
  #attempts = 0;
  #waiting: Waiting[] = [];
  #waitingBytes = 0;

  constructor(limits: StreamLimits = defaultStreamLimits) {
    this.#limits = limits;
  }

  get phase(): StreamPhase {
    return this.#phase;
  }

  /** Sequence number of the last batch applied, −1 before the first. */
  get lastSeq(): number {
    return this.#lastSeq;
  }

  /** Live batches that wait for a replay. */
  get waitingCount(): number {
    return this.#waiting.length;
  }

  /** Takes one input; see `streamTransitions`. */
  step(input: StreamInput): readonly StreamEffect[] {
    const out: StreamEffect[] = [];
    switch (streamTransitions[this.#phase][input.kind]) {
      case "ignore":
        break;
      case "start_replay":
        this.#attempts = 0;
        this.#requestReplay(out);
        break;
      case "stop":
        this.#phase = "idle";
        this.#dropWaiting();
        break;
      case "begin_again":
        this.#beginAgain("reset", out);
        this.#dropWaiting();
        if (this.#phase !== "idle") this.#requestReplay(out);
        break;
      case "drop":
        out.push({ kind: "dropped", reason: "not_connected" });
        break;
      case "buffer":
        if (input.kind === "live") this.#buffer(input, out);
        break;
      case "take_live":
        if (input.kind === "live") this.#takeLive(input, out);
        break;
      case "take_replayed":
        if (input.kind === "replayed" && input.replayId === this.#replayId) {
          this.#takeReplayed(input, out);
        }
        break;
      case "finish_replay":
        if ("replayId" in input && input.replayId === this.#replayId) this.#finishReplay(out);
        break;
    }
    return out;
  }

  #requestReplay(out: StreamEffect[]): void {
    this.#phase = "replaying";
    this.#replayId++;
    this.#attempts++;
    out.push({ kind: "request_replay", replayId: this.#replayId, fromSeq: this.#lastSeq + 1 });
  }

  #beginAgain(reason: ForgetReason, out: StreamEffect[]): void {
    if (this.#lastSeq >= 0) out.push({ kind: "forget", reason });
    this.#lastSeq = -1;
    this.#lastPublishedSeconds = -Infinity;
    this.#attempts = 0;
  }

  #buffer(item: Waiting, out: StreamEffect[]): void {
    const { bufferedBatchesMax, bufferedBytesMax } = this.#limits;
    if (
      this.#waiting.length >= bufferedBatchesMax ||
      this.#waitingBytes + item.payload.length > bufferedBytesMax
    ) {
      // The batch will be missing after the replay, which is a gap like any other.
      out.push({ kind: "dropped", reason: "buffer_full" });
      return;
    }
    this.#waiting.push({ seq: item.seq, payload: item.payload });
    this.#waitingBytes += item.payload.length;
  }

  #dropWaiting(): void {
    this.#waiting = [];
    this.#waitingBytes = 0;
  }

  #takeLive(item: Waiting, out: StreamEffect[]): void {
    const { seq } = item;
    if (seq === this.#lastSeq + 1) this.#takeNext(item, out);
    else if (seq > this.#lastSeq + 1) this.#takeAfterGap(item, out);
    else this.#takeOld(item, out);
  }

  #takeNext(item: Waiting, out: StreamEffect[]): void {
    if (this.#apply(item, out)) return;
    if (this.#attempts < this.#limits.replayAttemptsMax) {
      this.#requestReplay(out);
      return;
    }
    this.#giveUpBefore(item.seq + 1, "garbage", out);
  }

  #takeAfterGap(item: Waiting, out: StreamEffect[]): void {
    out.push({ kind: "gap", fromSeq: this.#lastSeq + 1, toSeq: item.seq - 1 });
    if (this.#attempts < this.#limits.replayAttemptsMax) {
      this.#buffer(item, out);
      this.#requestReplay(out);
      return;
    }
    this.#giveUpBefore(item.seq, "gap", out);
    this.#takeNext(item, out);
  }

  #takeOld(item: Waiting, out: StreamEffect[]): void {
    const decoded = decodeKvEventBatch(item.payload);
    if (!decoded.ok) {
      out.push({ kind: "undecodable", failure: decoded.failure, seq: item.seq });
      return;
    }
    if (decoded.batch.publishedSeconds <= this.#lastPublishedSeconds) {
      out.push({ kind: "dropped", reason: "duplicate" });
      return;
    }
    out.push({ kind: "engine_restarted" });
    this.#beginAgain("engine_restarted", out);
    this.#buffer(item, out);
    this.#requestReplay(out);
  }

  #takeReplayed(item: Waiting, out: StreamEffect[]): void {
    if (item.seq <= this.#lastSeq) return;
    if (item.seq > this.#lastSeq + 1) {
      out.push({ kind: "gap", fromSeq: this.#lastSeq + 1, toSeq: item.seq - 1 });
      this.#giveUpBefore(item.seq, "replay_truncated", out);
    }
    if (!this.#apply(item, out)) this.#giveUpBefore(item.seq + 1, "garbage", out);
  }

  #finishReplay(out: StreamEffect[]): void {
    this.#enterLive();
    const waiting = this.#waiting;
    this.#dropWaiting();
    for (const item of waiting) {
      // Taking one may ask for another replay, for which the rest waits behind it.
      if (this.#phase === "live") this.#takeLive(item, out);
      else this.#buffer(item, out);
    }
  }

  #enterLive(): void {
    this.#phase = "live";
  }

  /** Goes on at `seq` without what came before: what is held can no longer be trusted. */
  #giveUpBefore(seq: number, reason: ForgetReason, out: StreamEffect[]): void {
    if (this.#lastSeq >= 0) out.push({ kind: "forget", reason });
    this.#lastSeq = seq - 1;
  }

  #apply(item: Waiting, out: StreamEffect[]): boolean {
    const decoded = decodeKvEventBatch(item.payload);
    if (!decoded.ok) {
      out.push({ kind: "undecodable", failure: decoded.failure, seq: item.seq });
      return false;
    }
    this.#lastSeq = item.seq;
    this.#attempts = 0;
    const { publishedSeconds } = decoded.batch;
    if (publishedSeconds > this.#lastPublishedSeconds)
      this.#lastPublishedSeconds = publishedSeconds;
    out.push({ kind: "apply", batch: decoded.batch });
    return true;
  }
}
