import type { HandoffBook } from "../../core/request/handoff-book.ts";
import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";

/** The room that one request's hand-off takes at its prefill engine. */
export class HandoffRoom {
  readonly #book: HandoffBook;
  readonly #workerId: string;
  /** Number in the book; 0 when nothing is held any more. */
  #handoff: number;
  /** Whether the engine's lease runs. */
  #isLeased = false;

  /** Takes the room when prefill is asked for a hand-off of so many tokens. */
  constructor(book: HandoffBook, workerId: string, tokens: number) {
    this.#book = book;
    this.#workerId = workerId;
    this.#handoff = book.add(workerId, tokens);
  }

  /** Prefill has answered: the engine's lease runs. */
  made(now: number): void {
    this.#isLeased = true;
    if (this.#handoff !== 0) this.#book.made(this.#workerId, this.#handoff, now);
  }

  /** The prefill leg is over; only one that did its part leaves something to be pulled. */
  prefillEnded(outcome: LegOutcome): void {
    if (outcome !== "done") this.#giveBack();
  }

  /** The answer began: decode has pulled. */
  pulled(): void {
    this.#giveBack();
  }

  /**
   * The answering leg is over. A lost engine may not have pulled: the room stays until the lease ends, or, while none
   * runs, until it is known what became of prefill.
   */
  answerEnded(outcome: LegOutcome): void {
    if (outcome !== "lost") this.#giveBack();
    else if (this.#isLeased) this.#handoff = 0;
  }

  #giveBack(): void {
    if (this.#handoff === 0) return;
    this.#book.remove(this.#workerId, this.#handoff);
    this.#handoff = 0;
  }
}
