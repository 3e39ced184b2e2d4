import { randomInt } from "node:crypto";
import { SeededRandom } from "../shared/core/random.ts";
import { realClock } from "../shared/edge/clock.ts";
import { loadConfig } from "../shared/edge/config.ts";
import { announceReady, runMain } from "../shared/edge/lifecycle.ts";
import { createLogger } from "../shared/edge/log.ts";
import { RelayConfig } from "./config.ts";
import { startRelay } from "./edge/relay.ts";

const { config } = loadConfig({
  service: "relay",
  schema: RelayConfig,
  argv: process.argv.slice(2),
  env: process.env,
  cwd: process.cwd(),
});

await runMain(async () => {
  const log = createLogger({
    service: "relay",
    instance: config.instance,
    level: config.logLevel,
  });
  const relay = await startRelay(config, {
    log,
    clock: realClock,
    random: new SeededRandom(randomInt(2 ** 32)),
  });
  announceReady(log, "relay", {
    h2: relay.h2Port,
    http: relay.httpPort,
    metrics: relay.metricsPort,
  });
  return { log, drainMsMax: config.drainMsMax, stop: (reason) => relay.stop(reason) };
});
