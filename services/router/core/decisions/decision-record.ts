import type { WorkerId } from "../../../shared/core/ids.ts";
import type { ScoredCandidate } from "../placement/candidate.ts";
import type { DecisionPair } from "../placement/pairs/decision-pair.ts";
import type { DecisionGuard } from "../relays/decision-guard.ts";
import { RowCandidate } from "../placement/row-candidate.ts";
import { rowsPerDecision, type CandidateRows } from "./candidate-rows.ts";
import type {
  AnswerForm,
  Decision,
  DecisionAdmission,
  DecisionOutcome,
  FilteredWorker,
  Observation,
} from "./decision.ts";

/** What a decision is about, whatever becomes of it. */
export interface DecisionSubject {
  readonly id: string;
  readonly requestId: string;
  readonly decidedUnixUs: number;
  readonly pool: string;
  readonly model: string;
  readonly answer: AnswerForm;
  readonly policy: string;
  readonly promptTokens: number;
  readonly promptBlocks: number;
  readonly loadOnlyReason: string;
}

const nobody: readonly never[] = [];

/** A decision as the log keeps it: its candidates are objects while it is new and rows of numbers later. */
export class DecisionRecord implements Decision {
  readonly id: string;
  readonly requestId: string;
  readonly decidedUnixUs: number;
  readonly pool: string;
  readonly model: string;
  readonly answer: AnswerForm;
  readonly policy: string;
  readonly promptTokens: number;
  readonly promptBlocks: number;
  readonly loadOnlyReason: string;
  readonly outcome: DecisionOutcome;
  traceId = "";
  traceparent = "";
  decideUs = 0;
  expectedOutputTokens = 0;
  workerId: WorkerId | undefined = undefined;
  endpoints: readonly string[] = nobody;
  chosen: ScoredCandidate | undefined = undefined;
  filtered: readonly FilteredWorker[] = nobody;
  leftOut = 0;
  marginMs = 0;
  tieBreak = "";
  indexAgeMs = 0;
  pair: DecisionPair | undefined = undefined;
  guard: DecisionGuard | undefined = undefined;
  admission: DecisionAdmission | undefined = undefined;
  observed: Observation | undefined = undefined;
  /** Those that have no row. */
  #candidates: readonly ScoredCandidate[] = nobody;
  #rows: CandidateRows | undefined;
  #place = 0;
  #rowCount = 0;

  constructor(subject: DecisionSubject, outcome: DecisionOutcome) {
    this.id = subject.id;
    this.requestId = subject.requestId;
    this.decidedUnixUs = subject.decidedUnixUs;
    this.pool = subject.pool;
    this.model = subject.model;
    this.answer = subject.answer;
    this.policy = subject.policy;
    this.promptTokens = subject.promptTokens;
    this.promptBlocks = subject.promptBlocks;
    this.loadOnlyReason = subject.loadOnlyReason;
    this.outcome = outcome;
  }

  get candidates(): readonly ScoredCandidate[] {
    if (this.#rows === undefined) return this.#candidates;
    const kept = this.#rows.read(this.#place, this.#rowCount);
    return this.#candidates.length === 0 ? kept : [...kept, ...this.#candidates];
  }

  set candidates(candidates: readonly ScoredCandidate[]) {
    this.#candidates = candidates;
    this.#rows = undefined;
    this.chosen = candidates[0];
  }

  /** Workers in both lists. */
  get listed(): number {
    return this.#rowCount + this.#candidates.length + this.filtered.length;
  }

  /** Moves the first candidates, if they are of our own cost, to the rows of a place that is this decision's for good. */
  pack(rows: CandidateRows, place: number): void {
    if (this.#rows !== undefined || !areRows(this.#candidates)) return;
    rows.put(place, this.#candidates);
    this.#rows = rows;
    this.#place = place;
    this.#rowCount = Math.min(this.#candidates.length, rowsPerDecision);
    this.#candidates =
      this.#candidates.length <= rowsPerDecision ? nobody : this.#candidates.slice(rowsPerDecision);
  }

  /** Keeps of each list the first `kept`, at least those that have rows, and counts the others in `leftOut`. */
  shorten(kept: number): void {
    const before = this.listed;
    this.#candidates = this.#candidates.slice(0, Math.max(0, kept - this.#rowCount));
    this.filtered = this.filtered.slice(0, kept);
    this.leftOut += before - this.listed;
  }
}

function areRows(candidates: readonly ScoredCandidate[]): candidates is readonly RowCandidate[] {
  return candidates[0] instanceof RowCandidate;
}
