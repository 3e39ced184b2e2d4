import { realClock } from "../../../shared/edge/clock.ts";
import { progressLine, type RunProgress } from "../../core/progress-line.ts";
import type { CommandIo } from "../command-io.ts";

/** Time between two progress lines where nothing can be redrawn, ms. */
const lineEveryMs = 10_000;

/** Draws progress on stderr: one line that changes on a terminal, else a line now and then. */
export class ProgressPrinter {
  readonly #io: CommandIo;
  readonly #isTerminal = process.stderr.isTTY;
  #lastMs = Number.NEGATIVE_INFINITY;

  constructor(io: CommandIo) {
    this.#io = io;
  }

  /** Where a run is. */
  show(progress: RunProgress): void {
    const now = realClock.now();
    if (this.#isTerminal) {
      process.stderr.write(`\r\u001b[K${progressLine(progress, process.stderr.columns - 1)}`);
    } else if (now - this.#lastMs >= lineEveryMs) {
      this.#lastMs = now;
      this.#io.err(progressLine(progress, 200));
    }
  }

  /** The run is over. */
  end(): void {
    if (this.#isTerminal) process.stderr.write("\r\u001b[K");
  }
}
