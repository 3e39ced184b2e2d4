import { fork, type ChildProcess } from "node:child_process";
import type { Logger } from "pino";
import { RestartPolicy } from "../../shared/core/restart-policy.ts";
import type { Clock } from "../../shared/core/clock.ts";
import type { RunningService } from "../../shared/edge/lifecycle.ts";
import type { RouterProcessPlan } from "../core/processes/process-plan.ts";

/** What the group needs. */
export interface ProcessGroupDependencies {
  readonly plans: readonly RouterProcessPlan[];
  /** File that a process runs, and the flags that all of them share. */
  readonly main: string;
  readonly flags: readonly string[];
  readonly clock: Clock;
  readonly log: Logger;
  /** How long a process may take to drain, ms. */
  readonly drainMsMax: number;
  /** Called when every process has said once that it runs. */
  readonly onReady: () => void;
  /** Called when a process has died too often; the group is of no use without it. */
  readonly onGivenUp: (instance: string) => void;
}

/** Settings of one process as flags, which win over the file and the environment. */
function flagsOf(plan: RouterProcessPlan): string[] {
  const settings = { ...plan, processes: 1 };
  return Object.entries(settings).flatMap(([path, value]) => [
    "--set",
    `${path}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  ]);
}

/**
 * Runs one router on several cores as several processes. Does nothing on the path of a request: it starts the processes,
 * starts one that died again, and ends all of them.
 */
export class ProcessGroup implements RunningService {
  readonly log: Logger;
  readonly drainMsMax: number;
  readonly #d: ProcessGroupDependencies;
  readonly #running = new Map<string, ChildProcess>();
  readonly #restarts = new Set<NodeJS.Timeout>();
  readonly #ready = new Set<string>();
  #stopping = false;

  constructor(dependencies: ProcessGroupDependencies) {
    this.#d = dependencies;
    this.log = dependencies.log;
    // Each process has its own deadline; the group waits a little longer than the slowest.
    this.drainMsMax = dependencies.drainMsMax + 2_000;
    for (const plan of dependencies.plans) this.#start(plan, new RestartPolicy());
  }

  /** Ends every process with SIGTERM and waits for all. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const timer of this.#restarts) clearTimeout(timer);
    await Promise.all(
      [...this.#running.values()].map(
        (child) =>
          new Promise<void>((resolve) => {
            child.once("exit", () => {
              resolve();
            });
            child.kill("SIGTERM");
          }),
      ),
    );
  }

  #start(plan: RouterProcessPlan, policy: RestartPolicy): void {
    const { main, flags, log, clock } = this.#d;
    const { instance } = plan;
    // Its own process group: Ctrl-C reaches the group's supervisor alone, which ends the processes in order. The IPC
    // channel ends them when the supervisor is killed.
    const child = fork(main, [...flags, ...flagsOf(plan)], { detached: true });
    this.#running.set(instance, child);
    child.on("message", (message: { readonly event?: string }) => {
      if (message.event !== "ready") return;
      const isNew = !this.#ready.has(instance);
      this.#ready.add(instance);
      if (isNew && this.#ready.size === this.#d.plans.length) this.#d.onReady();
    });
    child.once("exit", (code, signal) => {
      this.#running.delete(instance);
      if (this.#stopping) return;
      const verdict = policy.died(clock.now());
      const how = signal ?? `code ${String(code)}`;
      if (verdict.kind === "give_up" || code === 2) {
        log.error({ event: "process_given_up", process: instance, how }, "process died too often");
        this.#d.onGivenUp(instance);
        return;
      }
      log.warn(
        { event: "process_restarted", process: instance, how, afterMs: verdict.afterMs },
        "process died; starting it again",
      );
      const timer = setTimeout(() => {
        this.#restarts.delete(timer);
        this.#start(plan, policy);
      }, verdict.afterMs);
      this.#restarts.add(timer);
    });
  }
}
