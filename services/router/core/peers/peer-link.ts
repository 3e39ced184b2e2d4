/** What the receiving side of a peer's stream must do with a message. */
export type SequenceOutcome = "apply" | "ignore" | "resync";

/** Checks the numbering of one peer's messages: a snapshot may start anywhere, the rest has no gaps. */
export class SequenceCheck {
  #expected: number | undefined;
  #asked = false;

  /** Number of the next message. */
  get expected(): number {
    return this.#expected ?? 1;
  }

  /** Classifies a message. After `resync` everything but a snapshot is ignored. */
  receive(seq: number, isSnapshot: boolean): SequenceOutcome {
    if (isSnapshot) {
      this.#expected = seq + 1;
      this.#asked = false;
      return "apply";
    }
    if (this.#expected === undefined || seq > this.#expected) {
      if (this.#asked) return "ignore";
      this.#asked = true;
      return "resync";
    }
    if (seq < this.#expected || this.#asked) return "ignore";
    this.#expected++;
    return "apply";
  }
}
