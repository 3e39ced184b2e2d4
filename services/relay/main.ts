import { randomInt } from "node:crypto";
import { SeededRandom } from "../shared/core/random.ts";
import { realClock } from "../shared/edge/clock.ts";
import { loadConfig } from "../shared/edge/config.ts";
import { announceReady, runMain } from "../shared/edge/lifecycle.ts";
import { createLogger } from "../shared/edge/log.ts";
import { startTracing } from "../shared/edge/tracing.ts";
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
  const { instance, otlpEndpoint } = config;
  const tracing = startTracing({ service: "relay", instance, endpoint: otlpEndpoint });
  const relay = await startRelay(config, {
    log,
    tracing,
    clock: realClock,
    random: new SeededRandom(randomInt(2 ** 32)),
  });
  const stop = async (reason: string): Promise<void> => {
    await relay.stop(reason);
    await tracing.stop();
  };
  announceReady(log, "relay", {
    h2: relay.h2Port,
    http: relay.httpPort,
    metrics: relay.metricsPort,
  });
  return { log, drainMsMax: config.drainMsMax, stop };
});
