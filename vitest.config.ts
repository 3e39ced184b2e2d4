import { defineConfig } from "vitest/config";

const project = (name: string, include: string[], timeoutMs: number, serial = false) => ({
  test: {
    name,
    include,
    environment: "node" as const,
    testTimeout: timeoutMs,
    hookTimeout: timeoutMs,
    fileParallelism: !serial,
    // e2e has no property tests: it is spared the import.
    setupFiles: serial ? [] : ["./test/support/property-seed.ts"],
  },
});

export default defineConfig({
  test: {
    maxWorkers: 2,
    reporters: ["default", "./test/support/closing-line-reporter.ts"],
    projects: [
      project(
        "unit",
        ["services/**/*.test.ts", "envoy/**/*.test.ts", "test/support/**/*.test.ts"],
        20_000,
      ),
      project("property", ["test/property/**/*.test.ts"], 60_000),
      project("contract", ["test/contract/**/*.test.ts"], 30_000),
      project("sim", ["test/sim/**/*.test.ts"], 120_000),
      project("fuzz", ["test/fuzz/**/*.test.ts"], 60_000),
      project("e2e", ["test/e2e/**/*.test.ts"], 120_000, true),
    ],
  },
});
