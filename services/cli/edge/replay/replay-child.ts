/** Process of one run: takes an order over IPC, reports progress, hands in the result and ends. */
import { loadWorkload } from "../../../shared/edge/workload-files.ts";
import { checkTokenCount } from "./exchange.ts";
import { runReplay } from "./generator.ts";
import type { ReplayMessage, ReplayOrder } from "./replay-process.ts";

const stop = new AbortController();

function send(message: ReplayMessage): Promise<void> {
  return new Promise((resolve) => {
    if (process.send === undefined || !process.connected) resolve();
    else process.send(message, () => resolve());
  });
}

async function run(order: ReplayOrder): Promise<void> {
  const { workload, file, verifyTokens, ...options } = order;
  try {
    const result = await runReplay({
      ...options,
      workload: loadWorkload(workload, file).workload,
      verify: verifyTokens === true ? checkTokenCount : undefined,
      signal: stop.signal,
      onProgress: (progress) => void send({ kind: "progress", progress }),
    });
    await send({ kind: "result", result });
  } catch (error) {
    await send({ kind: "refused", message: (error as Error).message });
  }
  process.exit(0);
}

// A terminal sends Ctrl-C to the whole group; the parent decides what happens then.
process.on("SIGINT", () => undefined);
process.on("disconnect", () => process.exit(0));
process.on("message", (message: ReplayMessage) => {
  if (message.kind === "order") void run(message.order);
  else if (message.kind === "stop") stop.abort();
});
