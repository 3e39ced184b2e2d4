import { MeshError } from "../../../shared/core/errors.ts";
import { realClock } from "../../../shared/edge/clock.ts";
import { RestartPolicy } from "../../../shared/core/restart-policy.ts";
import type { ExitInfo } from "./launcher.ts";
import type { Mesh } from "./mesh.ts";

/** What a supervisor tells. */
export interface SupervisorEvents {
  /** One line for a person. */
  readonly say: (line: string) => void;
  /** A process died too often; the mesh should end. The message holds the end of its log. */
  readonly gaveUp: (error: MeshError) => void;
  /** Process ids changed. */
  readonly changed: () => void;
}

/** What is remembered of a process that died. */
export interface Deaths {
  readonly deaths: number;
  readonly atUnixMs: number;
  readonly how: string;
}

/** How often logs are looked at for their bound, ms. */
const logCheckMs = 10_000;

/** Starts dead processes of a mesh again, with back-off, until one dies too often. */
export class Supervisor {
  readonly #mesh: Mesh;
  readonly #events: SupervisorEvents;
  readonly #policies = new Map<string, RestartPolicy>();
  readonly #deaths = new Map<string, Deaths>();
  readonly #stopListening: (() => unknown)[] = [];
  readonly #ended = new AbortController();

  constructor(mesh: Mesh, events: SupervisorEvents) {
    this.#mesh = mesh;
    this.#events = events;
  }

  /** Begins to watch. */
  watch(): void {
    for (const [name, process] of this.#mesh.processes) {
      this.#policies.set(name, new RestartPolicy());
      this.#stopListening.push(process.onExit((exit) => void this.#onExit(name, exit)));
    }
    void this.#boundLogs();
  }

  /** Deaths of a process since the mesh started; undefined when it lives since then. */
  deathsOf(name: string): Deaths | undefined {
    return this.#deaths.get(name);
  }

  /** Stops watching; restarts under way are given up. */
  end(): void {
    this.#ended.abort();
    for (const stop of this.#stopListening) stop();
  }

  async #onExit(name: string, exit: ExitInfo): Promise<void> {
    if (exit.expected || this.#isOver()) return;
    let how =
      exit.signal === null ? `exit code ${exit.code ?? "unknown"}` : `signal ${exit.signal}`;
    // Each try that fails counts as one more death, so this ends.
    for (;;) {
      this.#deaths.set(name, {
        deaths: (this.#deaths.get(name)?.deaths ?? 0) + 1,
        atUnixMs: Math.round(realClock.wallUnixUs() / 1_000),
        how,
      });
      const verdict = this.#policies.get(name)?.died(realClock.now());
      if (verdict === undefined) return;
      const process = this.#mesh.process(name);
      if (verdict.kind === "give_up") {
        const lines = process.logTail(20).join("\n  ");
        this.#events.gaveUp(
          new MeshError(
            "worker_lost",
            `${name} died ${verdict.deaths} times within a minute (last: ${how}); its last lines:\n  ${lines}\n(log: ${process.logFile})`,
          ),
        );
        return;
      }
      this.#events.say(`${name} died (${how}); restart ${verdict.death} in ${verdict.afterMs} ms`);
      try {
        await realClock.sleep(verdict.afterMs, this.#ended.signal);
        await this.#mesh.startProcess(name, this.#ended.signal);
        this.#events.say(`${name} runs again, pid ${process.pid ?? 0}`);
        this.#events.changed();
        return;
      } catch (error) {
        if (this.#isOver()) return;
        how = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
      }
    }
  }

  #isOver(): boolean {
    return this.#ended.signal.aborted;
  }

  async #boundLogs(): Promise<void> {
    while (!this.#isOver()) {
      try {
        await realClock.sleep(logCheckMs, this.#ended.signal);
      } catch {
        return;
      }
      for (const name of this.#mesh.processes.keys()) {
        if (this.#mesh.options.state.boundLog(name)) {
          this.#events.say(`log of ${name} reached its bound and was cut`);
        }
      }
    }
  }
}
