import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { MeshError } from "../../../shared/core/errors.ts";
import type { WorkloadFileOptions } from "../../../shared/edge/workload-files.ts";
import type { ReplayResult } from "../../core/replay/result.ts";
import type { ReplayOptions, ReplayProgress } from "./generator.ts";

/** What a run in its own process is told: a workload by name or path, and plain values alone. */
export interface ReplayOrder extends Omit<
  ReplayOptions,
  "workload" | "verify" | "signal" | "onProgress" | "onRecord" | "clock"
> {
  /** Name or path, as `loadWorkload` takes it. */
  readonly workload: string;
  readonly file?: WorkloadFileOptions;
  /** Whether token counts are checked. */
  readonly verifyTokens?: boolean;
}

/** Messages to and from the process. */
export type ReplayMessage =
  | { readonly kind: "order"; readonly order: ReplayOrder }
  | { readonly kind: "stop" }
  | { readonly kind: "progress"; readonly progress: ReplayProgress }
  | { readonly kind: "result"; readonly result: ReplayResult }
  | { readonly kind: "refused"; readonly message: string };

/** How long a stopped process may take to hand in its result before it is killed, ms. */
const stopMsMax = 5_000;

/**
 * `runReplay` in a process of its own, so that nothing of the caller delays a request and the
 * generator's cost is its own. The process ends with the run, and when this one is gone.
 * Throws `invalid_request` for a bad workload or figure, `worker_lost` when the process died.
 */
export function runReplayInProcess(
  order: ReplayOrder,
  { signal, onProgress }: Pick<ReplayOptions, "signal" | "onProgress"> = {},
): Promise<ReplayResult> {
  return new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(new URL("replay-child.ts", import.meta.url)), {
      stdio: ["ignore", "ignore", "inherit", "ipc"],
      execArgv: [],
    });
    let killTimer: NodeJS.Timeout | undefined;
    const onAbort = (): void => {
      if (child.connected) child.send({ kind: "stop" } satisfies ReplayMessage);
      killTimer = setTimeout(() => child.kill("SIGKILL"), stopMsMax);
    };
    const finish = (settle: () => void): void => {
      signal?.removeEventListener("abort", onAbort);
      clearTimeout(killTimer);
      settle();
    };
    child.on("message", (message: ReplayMessage) => {
      switch (message.kind) {
        case "progress":
          onProgress?.(message.progress);
          break;
        case "result":
          finish(() => resolve(message.result));
          break;
        case "refused":
          finish(() => reject(new MeshError("invalid_request", message.message)));
          break;
        case "order":
        case "stop":
          break;
      }
    });
    child.on("error", (cause) => {
      finish(() => reject(new MeshError("worker_lost", "replay process failed", { cause })));
    });
    child.on("exit", (code, killedBy) => {
      // After a result this changes nothing: the promise is settled.
      const how = killedBy === null ? `exit code ${String(code)}` : killedBy;
      finish(() => reject(new MeshError("worker_lost", `replay process ended early: ${how}`)));
    });
    child.send({ kind: "order", order } satisfies ReplayMessage);
    signal?.addEventListener("abort", onAbort);
    if (signal?.aborted === true) onAbort();
  });
}
