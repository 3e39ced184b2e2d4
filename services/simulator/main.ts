import { pathToFileURL } from "node:url";
import { realClock } from "../shared/edge/clock.ts";
import { loadConfig } from "../shared/edge/config.ts";
import { announceReady, runMain } from "../shared/edge/lifecycle.ts";
import { createLogger } from "../shared/edge/log.ts";
import { startTracing } from "../shared/edge/tracing.ts";
import { EngineConfig } from "./config.ts";
import { calibrateRun, formatCalibration } from "./core/calibration/calibrate-run.ts";
import { readMeasuredRuns } from "./edge/calibration-files.ts";
import { startEngine } from "./edge/engine-process.ts";
import { baselinesCommand } from "./edge/baselines-command.ts";
import { simCommand } from "./edge/sim-command.ts";

const usage = `usage: main.ts engine [--config FILE] [--set path=value]… [--print-config]
       main.ts calibrate
       main.ts sim WORKLOAD [--policy LIST|all] [--rate X] [--duration S] [--view live|exact] …
       main.ts sim baselines [--policy LIST|all] [--loads LIST] [--windows N] [--duration S] …
`;

async function runEngine(argv: readonly string[]): Promise<void> {
  const { config } = loadConfig({
    service: "engine",
    schema: EngineConfig,
    argv,
    env: process.env,
    cwd: process.cwd(),
  });
  await runMain(async () => {
    const log = createLogger({
      service: "engine",
      instance: config.instance,
      level: config.logLevel,
    });
    const tracing = startTracing({
      service: "engine",
      instance: config.instance,
      endpoint: config.otlpEndpoint,
    });
    const engine = await startEngine(config, {
      clock: realClock,
      log,
      tracing,
      exit: (code) => process.exit(code),
    });
    announceReady(log, "engine", engine.ports);
    return {
      log,
      drainMsMax: Math.max(config.shutdownTimeoutMs, config.hangMsMax) + 5_000,
      async stop() {
        await engine.shutdown();
        await tracing.stop();
      },
    };
  });
}

function runSim(argv: readonly string[]): void {
  try {
    const [first, ...rest] = argv;
    const [command, flags] = first === "baselines" ? [baselinesCommand, rest] : [simCommand, argv];
    command(flags, {
      write: (line) => void process.stdout.write(`${line}\n`),
      nowMs: () => realClock.now(),
    });
  } catch (error) {
    process.stderr.write(`kvmesh sim: ${(error as Error).message}\n`);
    process.exitCode = 2;
  }
}

/** Runs one command of the simulator: `engine`, `calibrate` or `sim`. */
export async function main(argv: readonly string[]): Promise<void> {
  const [command, ...rest] = argv;
  switch (command) {
    case "engine":
      await runEngine(rest);
      return;
    case "calibrate":
      for (const run of readMeasuredRuns()) {
        const calibration = calibrateRun(run, { replaysMax: 150 });
        process.stdout.write(`${formatCalibration(calibration)}\n\n`);
      }
      return;
    case "sim":
      runSim(rest);
      return;
    default:
      process.stderr.write(usage);
      process.exit(2);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await main(process.argv.slice(2));
}
