import { readFileSync } from "node:fs";
import { pino, type Logger } from "pino";

/** Log levels that `--set logLevel=…` accepts. */
export const logLevels = ["fatal", "error", "warn", "info", "debug", "trace", "silent"] as const;

/** One of `logLevels`. */
export type LogLevel = (typeof logLevels)[number];

/** Version of the whole product, from package.json. */
export function productVersion(): string {
  const text = readFileSync(new URL("../../../package.json", import.meta.url), "utf8");
  const parsed = JSON.parse(text) as { version: string };
  return parsed.version;
}

/** Root logger of a process: one JSON object a line on stdout, with service, instance and version on each. */
export function createLogger(options: {
  service: string;
  instance: string;
  level: LogLevel;
}): Logger {
  return pino({
    level: options.level,
    base: { service: options.service, instance: options.instance, version: productVersion() },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    serializers: { err: pino.stdSerializers.err },
  });
}
