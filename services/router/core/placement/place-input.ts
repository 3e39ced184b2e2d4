import type { AnswerForm } from "../decisions/decision.ts";
import type { GuardAsk } from "../relays/decision-guard.ts";

/** A request to place. */
export interface PlaceInput {
  readonly requestId: string;
  readonly pool: string;
  readonly model: string;
  readonly promptTokens: number;
  /** Sequence hashes of the full prompt blocks, (lo, hi) pairs. */
  readonly hashes: Uint32Array;
  readonly tokensMax: number | undefined;
  /** Key of the conversation that it belongs to; absent or empty when its caller names none. */
  readonly session?: string;
  /** How its answer is asked for; absent when unknown. Nothing is learned of first tokens unless it is streamed. */
  readonly answer?: AnswerForm;
  readonly loadOnlyReason: string;
  /** Only these endpoints may serve; `undefined` means all. */
  readonly subset: ReadonlySet<string> | undefined;
  /** Workers that must not be chosen. */
  readonly excluded?: ReadonlySet<string>;
  /** Whether its prompt may be computed on another worker than its answer; absent for no. */
  readonly isPairable?: boolean;
  /** How its stream is to survive its engine; absent when it need not. */
  readonly guard?: GuardAsk;
  readonly dryRun: boolean;
  /** Wall clock, for people. */
  readonly unixUs: number;
}
