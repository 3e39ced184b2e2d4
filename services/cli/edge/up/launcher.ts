import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readSync, fstatSync } from "node:fs";
import { dirname } from "node:path";
import { env as ownEnv, execPath, kill as killPid } from "node:process";
import { MeshError } from "../../../shared/core/errors.ts";
import { realClock } from "../../../shared/edge/clock.ts";

/** How a process is started and how it says that it is ready. */
export interface LaunchSpec {
  /** Name in messages and of the log file, such as `router-0`. */
  readonly name: string;
  /** Program and arguments. */
  readonly command: readonly [string, ...string[]];
  /** Working folder. */
  readonly cwd: string;
  /** Added to this process's environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** Where stdout and stderr go, appended; its folder is made. */
  readonly logFile: string;
  /**
   * `ipc`: a Node process that sends `{ event: "ready", ports }`, and that ends when the channel closes.
   * `none`: ready once started; the caller knows better ways to ask.
   */
  readonly readiness: "ipc" | "none";
  /** Longest time to readiness, ms. */
  readonly readyMsMax: number;
}

/** How a process ended. */
export interface ExitInfo {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Whether this side asked for it. */
  readonly expected: boolean;
}

/** The Node that runs TypeScript sources: this process's own, since `bin.mjs` has chosen it. */
export const nodeBinary = execPath;

/** Bytes from the end of a log that are shown when a process fails. */
const logTailBytes = 16 * 1024;

/**
 * One process that this one starts, watches and ends, by its id alone. Output goes to a file, not through this
 * process, so that a burst of it costs nothing here and survives.
 */
export class ManagedProcess {
  readonly name: string;
  readonly #spec: LaunchSpec;
  readonly #exitListeners = new Set<(exit: ExitInfo) => void>();
  #child: ChildProcess | undefined;
  #exited: Promise<ExitInfo> | undefined;
  #asked = false;
  #ports: Readonly<Record<string, number>> = {};
  #startCount = 0;
  #logFrom = 0;

  constructor(spec: LaunchSpec) {
    this.name = spec.name;
    this.#spec = spec;
  }

  /** Process id while it runs. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Whether it runs now. */
  get running(): boolean {
    return this.#child !== undefined;
  }

  /** Times it was started. */
  get startCount(): number {
    return this.#startCount;
  }

  /** Ports that it announced, by its own names; empty before it is ready. */
  get ports(): Readonly<Record<string, number>> {
    return this.#ports;
  }

  /** Where its output goes. */
  get logFile(): string {
    return this.#spec.logFile;
  }

  /** Calls back at every end of the process, asked for or not. Returns how to stop listening. */
  onExit(listener: (exit: ExitInfo) => void): () => void {
    this.#exitListeners.add(listener);
    return () => this.#exitListeners.delete(listener);
  }

  /**
   * Starts it and waits until it is ready. Fails with `worker_lost` when it ends first, `deadline_exceeded` when it
   * is not ready in time (then it is killed), `cancelled` on abort (killed too); each with the end of its log.
   */
  async start(signal?: AbortSignal): Promise<void> {
    if (this.#child !== undefined) {
      throw new MeshError("already_exists", `${this.name} runs already, pid ${String(this.pid)}`);
    }
    if (signal?.aborted === true)
      throw new MeshError("cancelled", `start of ${this.name} given up`);
    mkdirSync(dirname(this.#spec.logFile), { recursive: true });
    const log = openSync(this.#spec.logFile, "a", 0o644);
    this.#logFrom = fstatSync(log).size;
    const [program, ...args] = this.#spec.command;
    const ipc = this.#spec.readiness === "ipc";
    const child = spawn(program, args, {
      cwd: this.#spec.cwd,
      env: { ...ownEnv, ...this.#spec.env },
      stdio: ipc ? ["ignore", log, log, "ipc"] : ["ignore", log, log],
      // Its own process group: a terminal sends Ctrl-C to this process alone, which then ends the others in order.
      detached: true,
    });
    closeSync(log);
    this.#child = child;
    this.#asked = false;
    this.#ports = {};
    this.#startCount++;
    this.#exited = new Promise((resolve) => {
      let done = false;
      const ended = (code: number | null, killedBy: NodeJS.Signals | null): void => {
        if (done) return;
        done = true;
        this.#child = undefined;
        const exit = { code, signal: killedBy, expected: this.#asked };
        resolve(exit);
        for (const listener of this.#exitListeners) listener(exit);
      };
      child.once("exit", ended);
      // A program that cannot be started at all has no exit event.
      child.once("error", () => {
        if (child.pid === undefined) ended(127, null);
      });
    });
    if (!ipc) {
      // Gives an exec failure one turn to show; readiness is the caller's to find out.
      await realClock.sleep(0);
      if (!this.running) throw this.#failed("ended at once");
      return;
    }
    await this.#becomeReady(child, signal);
  }

  async #becomeReady(child: ChildProcess, signal: AbortSignal | undefined): Promise<void> {
    const settled = new AbortController();
    const announced = new Promise<"ready">((resolve) => {
      child.on("message", (message: unknown) => {
        if (!isReadyMessage(message)) return;
        this.#ports = message.ports;
        resolve("ready");
      });
    });
    const aborted = new Promise<"aborted">((resolve) => {
      signal?.addEventListener(
        "abort",
        () => {
          resolve("aborted");
        },
        { once: true, signal: settled.signal },
      );
    });
    const late = realClock.sleep(this.#spec.readyMsMax, settled.signal).then(
      () => "late" as const,
      () => "settled" as const,
    );
    const ended = this.exited().then(() => "ended" as const);
    const outcome = await Promise.race([announced, ended, late, aborted]);
    settled.abort();
    if (outcome === "ready") return;
    if (outcome === "ended") throw this.#failed("ended before it was ready");
    this.kill("SIGKILL");
    await this.exited();
    if (outcome === "aborted") throw new MeshError("cancelled", `start of ${this.name} given up`);
    throw this.#failed(
      `was not ready within ${String(this.#spec.readyMsMax)} ms`,
      "deadline_exceeded",
    );
  }

  #failed(what: string, code: "worker_lost" | "deadline_exceeded" = "worker_lost"): MeshError {
    const tail = this.logTail(20);
    const shown =
      tail.length === 0 ? "it wrote nothing" : `its last lines:\n  ${tail.join("\n  ")}`;
    return new MeshError(code, `${this.name} ${what}; ${shown}\n(log: ${this.#spec.logFile})`);
  }

  /** Resolves when the process of the last start has ended; at once when none was started. */
  async exited(): Promise<ExitInfo> {
    return (await this.#exited) ?? { code: 0, signal: null, expected: true };
  }

  /** Sends a signal; says whether there was a process to send it to. Its end is expected for TERM, INT and KILL. */
  kill(signal: NodeJS.Signals): boolean {
    const child = this.#child;
    if (child?.pid === undefined) return false;
    if (signal === "SIGTERM" || signal === "SIGINT" || signal === "SIGKILL") this.#asked = true;
    return child.kill(signal);
  }

  /** Kills it as a fault would: the supervisor sees an unexpected end. */
  crash(): boolean {
    return this.#child?.kill("SIGKILL") ?? false;
  }

  /** Asks it to end, kills it after `graceMs`, and resolves when it is gone. Safe to call twice. */
  async stop(graceMs: number, signal: NodeJS.Signals = "SIGTERM"): Promise<ExitInfo> {
    if (!this.kill(signal)) return this.exited();
    const gone = new AbortController();
    const killer = realClock.sleep(graceMs, gone.signal).then(
      () => this.kill("SIGKILL"),
      () => false,
    );
    const exit = await this.exited();
    gone.abort();
    await killer;
    return exit;
  }

  /** The last lines of what the process of this start wrote, at most `lines` and 16 KiB. */
  logTail(lines: number): string[] {
    return readTail(this.#spec.logFile, this.#logFrom, lines);
  }
}

/** Whether a process of ours still exists. A zombie counts as gone once its parent has seen its exit. */
export function isAlive(pid: number): boolean {
  try {
    killPid(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

function readTail(path: string, from: number, lines: number): string[] {
  if (!existsSync(path)) return [];
  const file = openSync(path, "r");
  try {
    const size = fstatSync(file).size;
    // A log that was cut since the start begins anew.
    const start = Math.max(from > size ? 0 : from, size - logTailBytes);
    const bytes = Buffer.alloc(Math.max(0, size - start));
    const read = readSync(file, bytes, 0, bytes.length, start);
    return bytes
      .subarray(0, read)
      .toString("utf8")
      .split("\n")
      .filter((line) => line.trim() !== "")
      .slice(-lines);
  } finally {
    closeSync(file);
  }
}

function isReadyMessage(
  message: unknown,
): message is { readonly event: "ready"; readonly ports: Readonly<Record<string, number>> } {
  if (typeof message !== "object" || message === null) return false;
  const { event, ports } = message as Record<string, unknown>;
  return event === "ready" && typeof ports === "object" && ports !== null;
}
