import { fork, type ChildProcess } from "node:child_process";
import { once } from "node:events";

/** Children that still run; a benchmark that ends early must not leave them behind. */
const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/** How long a child may take to start or to answer a message, ms. */
const answerMsMax = 300_000;

/** A process of the benchmark that it talks to over IPC. */
export class BenchChild {
  readonly #child: ChildProcess;
  readonly #name: string;
  #waiting: { readonly resolve: (message: unknown) => void; readonly kind: string } | undefined;
  #failed: ((error: Error) => void) | undefined;

  /** `onMessage` gets every message that nobody waits for. */
  constructor(
    path: string,
    options: {
      readonly name: string;
      readonly args?: readonly string[];
      readonly nodeArgs?: readonly string[];
      /** JSON for services, whose own messages are plain; advanced for typed arrays. */
      readonly serialization?: "json" | "advanced";
      readonly onMessage?: (message: unknown) => void;
    },
  ) {
    this.#name = options.name;
    this.#child = fork(path, [...(options.args ?? [])], {
      execArgv: [...(options.nodeArgs ?? [])],
      serialization: options.serialization ?? "advanced",
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    running.add(this.#child);
    this.#child.on("message", (message: { readonly kind?: string; readonly event?: string }) => {
      const waiting = this.#waiting;
      if (waiting !== undefined && (message.kind ?? message.event) === waiting.kind) {
        this.#waiting = undefined;
        waiting.resolve(message);
      } else options.onMessage?.(message);
    });
    this.#child.on("exit", (code, signal) => {
      running.delete(this.#child);
      this.#failed?.(new Error(`${this.#name} ended with ${signal ?? String(code)}`));
    });
  }

  /** Process id. */
  get pid(): number {
    const { pid } = this.#child;
    if (pid === undefined) throw new Error(`${this.#name} did not start`);
    return pid;
  }

  /** Waits for a message of this kind; rejects when the process ends before or 5 minutes pass. */
  answer<T>(kind: string): Promise<T> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new Error(`${this.#name} did not answer (${kind})`));
      }, answerMsMax);
      this.#failed = reject;
      this.#waiting = {
        kind,
        resolve: (message) => {
          clearTimeout(timer);
          this.#failed = undefined;
          resolve(message as T);
        },
      };
    });
  }

  /** Sends a message and waits for the answer of this kind. */
  ask<T>(message: object, kind: string): Promise<T> {
    const answer = this.answer<T>(kind);
    this.#child.send(message);
    return answer;
  }

  /** Ends the process: SIGTERM, and SIGKILL after 10 s. */
  async stop(): Promise<void> {
    if (!running.has(this.#child)) return;
    const ended = once(this.#child, "exit");
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 10_000);
    this.#child.kill("SIGTERM");
    await ended;
    clearTimeout(timer);
  }
}
