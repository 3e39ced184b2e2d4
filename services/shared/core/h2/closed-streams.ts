/**
 * How a stream was closed. `early`: by us while the client may still have been sending, so that what comes for it
 * is dropped; `both_ended`: orderly; `client_reset`: by the client.
 */
export type ClosedHow = "early" | "both_ended" | "client_reset";

const remembered = 1_024;
const hows: readonly ClosedHow[] = ["early", "both_ended", "client_reset"];

/** Remembers the last 1,024 closed streams, which decides how a late frame is answered (RFC 9113 §5.1). */
export class ClosedStreams {
  readonly #ids = new Int32Array(remembered);
  readonly #how = new Uint8Array(remembered);
  #next = 0;

  add(streamId: number, how: ClosedHow): void {
    this.#ids[this.#next] = streamId;
    this.#how[this.#next] = hows.indexOf(how);
    this.#next = (this.#next + 1) % remembered;
  }

  /** How `streamId` was closed, or undefined when it was never open or that is long ago. Newest first, O(1,024). */
  find(streamId: number): ClosedHow | undefined {
    for (let back = 1; back <= remembered; back++) {
      const at = (this.#next - back + remembered) % remembered;
      if (this.#ids[at] === streamId) return hows[this.#how[at] as number];
    }
    return undefined;
  }
}
