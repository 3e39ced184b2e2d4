import { spawn, type ChildProcess } from "node:child_process";
import { readClosingLine, type TestCounts } from "./closing-line.ts";

/** One command. */
export interface Step {
  /** For people, one word or two. */
  readonly name: string;
  readonly command: readonly [string, ...string[]];
  /** It is ended, and counts as failed, when it takes longer. */
  readonly timeMsMax: number;
  /** Whether it has to tell how many tests passed, as its last line (`closing-line.ts`). */
  readonly countsTests?: boolean;
}

/** Commands that run one after the other, beside those of other lanes. A step that fails does not end its lane. */
export interface Lane {
  /** Priority for the processor as `nice` takes it: 0 is first, 19 waits for everybody. */
  readonly nice: number;
  readonly steps: readonly Step[];
}

/** How a step ended. */
export interface StepEnd {
  readonly name: string;
  /** What went wrong, for people; `undefined` for a step that passed. */
  readonly failure: string | undefined;
  readonly ms: number;
  /** Of a step that counts tests: what it told, with one failed test more where a failure shows in no test. */
  readonly counts: TestCounts | undefined;
}

/** Where lanes run and what they write. */
export interface LaneOptions {
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  /** Takes whole lines of output. */
  readonly write: (text: string) => void;
  /** Ends everything when it is aborted: what runs is told to end, what has not begun is left out. */
  readonly signal: AbortSignal;
}

/** A step that was told to end and still runs is killed after this long, ms. */
const endMsMax = 15_000;
/** So much of the output of a step is kept until it can be shown, characters; the beginning gives way. */
const heldCharsMax = 4_000_000;

/**
 * Runs lanes beside each other and returns how their steps ended, lane by lane. The first lane's output is written as it
 * comes; that of the others follows when the first has ended: what passed first, what failed last. Closing lines of
 * steps are not written: whoever runs lanes tells the sum.
 */
export async function runLanes(
  lanes: readonly Lane[],
  options: LaneOptions,
): Promise<readonly StepEnd[]> {
  const held: { readonly end: StepEnd; readonly text: string }[] = [];
  let live = true;
  const show = (): void => {
    held.sort((a, b) => Number(a.end.failure !== undefined) - Number(b.end.failure !== undefined));
    for (const { text } of held.splice(0)) options.write(text);
  };
  const ends = await Promise.all(
    lanes.map(async (lane, index) => {
      const own: StepEnd[] = [];
      for (const step of lane.steps) {
        if (options.signal.aborted) break;
        const log = new HeldText();
        const write = index === 0 ? options.write : log.add.bind(log);
        const end = await runStep(step, { ...options, write, nice: lane.nice });
        own.push(end);
        if (end.failure !== undefined) write(`\n${step.name} failed: ${end.failure}\n`);
        if (log.text !== "") held.push({ end, text: log.text });
      }
      if (index === 0) live = false;
      if (!live) show();
      return own;
    }),
  );
  show();
  return ends.flat();
}

/** The end of a text that may be long. */
class HeldText {
  #text = "";
  #isCut = false;

  add(text: string): void {
    this.#text += text;
    if (this.#text.length <= heldCharsMax) return;
    this.#text = this.#text.slice(-heldCharsMax / 2);
    this.#isCut = true;
  }

  get text(): string {
    return this.#isCut ? `… the beginning of this output is left out\n${this.#text}` : this.#text;
  }
}

async function runStep(
  step: Step,
  options: LaneOptions & { readonly nice: number },
): Promise<StepEnd> {
  const startedAt = performance.now();
  let counts: TestCounts | undefined;
  const take = (line: string): void => {
    const told = step.countsTests === true ? readClosingLine(line) : undefined;
    if (told === undefined) options.write(`${line}\n`);
    else counts = told;
  };
  const [out, err] = [new WholeLines(take), new WholeLines(take)];
  const why = await new Promise<string | undefined>((resolve) => {
    const nice = options.nice === 0 ? [] : ["nice", "-n", String(options.nice)];
    const [program = "", ...words] = [...nice, ...step.command];
    const { cwd, env } = options;
    const child = spawn(program, words, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
    let reason: string | undefined;
    const end = (because: string): void => {
      reason ??= because;
      endSoon(child);
    };
    const limit = setTimeout(() => {
      end(`it took longer than ${step.timeMsMax / 1_000} s`);
    }, step.timeMsMax);
    const onAbort = (): void => {
      end("it was told to end");
    };
    options.signal.addEventListener("abort", onAbort);
    const settle = (failure: string | undefined): void => {
      clearTimeout(limit);
      options.signal.removeEventListener("abort", onAbort);
      resolve(failure);
    };
    child.stdout.on("data", (bytes: Buffer) => {
      out.add(bytes);
    });
    child.stderr.on("data", (bytes: Buffer) => {
      err.add(bytes);
    });
    child.once("error", ({ message }) => {
      settle(`${program} could not be run: ${message}`);
    });
    child.once("close", (code, signal) => {
      settle(reason ?? (code === 0 ? undefined : `it ended with ${signal ?? `code ${code}`}`));
    });
  });
  out.end();
  err.end();
  const isCounted = step.countsTests !== true || counts !== undefined;
  const failure = why ?? (isCounted ? undefined : "it did not tell how many tests passed");
  return {
    name: step.name,
    failure,
    ms: performance.now() - startedAt,
    counts: step.countsTests === true ? withFailure(counts, failure !== undefined) : undefined,
  };
}

/** Counts that show a failure where there is one. */
function withFailure(counts: TestCounts | undefined, isFailed: boolean): TestCounts {
  const told = counts ?? { passed: 0, failed: 0, skipped: 0 };
  return isFailed && told.failed === 0 ? { ...told, failed: 1 } : told;
}

/** Tells a process to end, and kills it when it does not. */
function endSoon(child: ChildProcess): void {
  child.kill("SIGTERM");
  const timer = setTimeout(() => {
    child.kill("SIGKILL");
    // What it has started may hold its output open for longer.
    child.stdout?.destroy();
    child.stderr?.destroy();
  }, endMsMax);
  child.once("close", () => {
    clearTimeout(timer);
  });
}

/** Cuts a stream of bytes into lines. */
class WholeLines {
  readonly #take: (line: string) => void;
  readonly #decoder = new TextDecoder();
  #rest = "";

  constructor(take: (line: string) => void) {
    this.#take = take;
  }

  add(bytes: Buffer): void {
    const parts = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split("\n");
    this.#rest = parts.pop() ?? "";
    for (const line of parts) this.#take(line);
  }

  end(): void {
    if (this.#rest !== "") this.#take(this.#rest);
    this.#rest = "";
  }
}
