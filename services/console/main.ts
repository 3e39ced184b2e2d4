import { realClock } from "../shared/edge/clock.ts";
import { loadConfig } from "../shared/edge/config.ts";
import { announceReady, runMain } from "../shared/edge/lifecycle.ts";
import { createLogger } from "../shared/edge/log.ts";
import { ConsoleConfig } from "./config.ts";
import { startConsole } from "./edge/console.ts";

const { config } = loadConfig({
  service: "console",
  schema: ConsoleConfig,
  argv: process.argv.slice(2),
  env: process.env,
  cwd: process.cwd(),
});

await runMain(async () => {
  const log = createLogger({
    service: "console",
    instance: config.instance,
    level: config.logLevel,
  });
  const running = await startConsole(config, { log, clock: realClock });
  announceReady(log, "console", running.ports);
  return { log, drainMsMax: 5_000, stop: () => running.stop() };
});
