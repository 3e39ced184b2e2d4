import { randomInt } from "node:crypto";
import { SeededRandom } from "../shared/core/random.ts";
import { realClock } from "../shared/edge/clock.ts";
import { loadConfig } from "../shared/edge/config.ts";
import { announceReady, runMain } from "../shared/edge/lifecycle.ts";
import { createLogger } from "../shared/edge/log.ts";
import { WorkerConfig } from "./config.ts";
import { startWorker } from "./edge/worker.ts";

const { config } = loadConfig({
  service: "worker",
  schema: WorkerConfig,
  argv: process.argv.slice(2),
  env: process.env,
  cwd: process.cwd(),
});

await runMain(async () => {
  const instance = config.workerId ?? new URL(config.engine.url).host;
  const log = createLogger({ service: "worker", instance, level: config.logLevel });
  const worker = await startWorker(config, {
    log,
    clock: realClock,
    random: new SeededRandom(randomInt(2 ** 32)),
    workerStartMs: Math.round(realClock.wallUnixUs() / 1_000),
  });
  announceReady(log, "worker", { http: worker.httpPort });
  return { log, drainMsMax: 2_000, stop: (reason) => worker.stop(reason) };
});
