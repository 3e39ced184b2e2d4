import { attributes } from "../../../shared/core/trace-catalogue.ts";
import { streamEventAttributes, streamEvents } from "../../../shared/core/trace-catalogue-relay.ts";
import type { Clock } from "../../../shared/core/clock.ts";
import type { MeshSpan } from "../../../shared/edge/tracing.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { TailUsage } from "../../core/request/tail-usage.ts";
import { StreamGaps, type StallSide } from "../../core/trace/stream-gaps.ts";

/** Stalls of one stream that are told as events; all are counted. */
const stallEventsMax = 8;

/** The answer's way to its client as a span: how evenly it came, what stood still, and where it went on elsewhere. */
export class StreamSpan {
  readonly #span: MeshSpan;
  readonly #clock: Clock;
  readonly #gaps: StreamGaps;
  #bytes = 0;
  #migrations = 0;
  #stallEvents = 0;
  #isPieceFirst = true;

  /** `span`: begun with the answer's first byte, now. */
  constructor(span: MeshSpan, clock: Clock, ttftMs: number) {
    this.#span = span;
    this.#clock = clock;
    this.#gaps = new StreamGaps(clock.now());
    const told = { [attributes.streamTtftMs]: ttftMs };
    span.event(streamEvents.firstToken, told, clock.wallUnixUs());
    span.set(told);
  }

  get migrations(): number {
    return this.#migrations;
  }

  /** Mean gap between pieces, ms; `undefined` before there are two. */
  get meanGapMs(): number | undefined {
    return this.#gaps.meanMs;
  }

  /** A piece of so many bytes goes out. */
  piece(bytes: number): void {
    this.#bytes += bytes;
    if (this.#isPieceFirst) this.#isPieceFirst = false;
    else this.#stalled(this.#gaps.piece(this.#clock.now()), "engine");
  }

  /** The client is behind. */
  paused(): void {
    this.#gaps.paused(this.#clock.now());
  }

  /** The client takes more again. */
  resumed(): void {
    this.#stalled(this.#gaps.resumed(this.#clock.now()), "client");
  }

  /** The stream goes on at another engine. */
  migrated(to: {
    readonly workerId: string;
    readonly cause: LegOutcome;
    /** Tokens that the client had. */
    readonly offset: number;
    readonly gapMs: number;
  }): void {
    this.#migrations++;
    this.#span.event(
      streamEvents.migrated,
      {
        [attributes.workerId]: to.workerId,
        [attributes.resumeTokenOffset]: to.offset,
        [streamEventAttributes.cause]: to.cause,
        [streamEventAttributes.gapMs]: to.gapMs,
      },
      this.#clock.wallUnixUs(),
    );
  }

  /** The answer is over. `tokens`: those that the client got, where they are counted. */
  ended(end: {
    readonly usage: TailUsage | undefined;
    readonly tokens: number | undefined;
    readonly hasLeft: boolean;
    readonly errorType: string | undefined;
  }): void {
    const nowUs = this.#clock.wallUnixUs();
    const { usage, tokens } = end;
    if (end.hasLeft) this.#span.event(streamEvents.clientCancel, {}, nowUs);
    if (usage !== undefined && usage.promptTokens + usage.generatedTokens > -2) {
      this.#span.event(
        streamEvents.usage,
        {
          [attributes.genAiUsageInputTokens]: known(usage.promptTokens),
          [attributes.observedCachedTokens]: known(usage.cachedTokens),
          [attributes.genAiUsageOutputTokens]: known(usage.generatedTokens),
        },
        nowUs,
      );
    }
    const gaps = this.#gaps;
    this.#span.set({
      [attributes.streamBytes]: this.#bytes,
      [attributes.streamMigrations]: this.#migrations,
      [attributes.streamTokens]: tokens,
      [attributes.streamItlP50Ms]: gaps.quantileMs(0.5),
      [attributes.streamItlP99Ms]: gaps.quantileMs(0.99),
      [attributes.streamStalls]: gaps.stalls,
      [attributes.streamStallEngineMs]: gaps.engineStallMs,
      [attributes.streamStallClientMs]: gaps.clientStallMs,
    });
    if (end.errorType !== undefined) this.#span.fail(end.errorType);
    this.#span.end(nowUs);
  }

  #stalled(ms: number, side: StallSide): void {
    if (ms === 0 || this.#stallEvents >= stallEventsMax) return;
    this.#stallEvents++;
    this.#span.event(
      streamEvents.stall,
      { [streamEventAttributes.stallMs]: ms, [streamEventAttributes.stallSide]: side },
      this.#clock.wallUnixUs(),
    );
  }
}

/** A count, or nothing where nobody said. */
export function known(count: number): number | undefined {
  return count < 0 ? undefined : count;
}
