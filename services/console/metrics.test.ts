import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import type { MetricSpec } from "../shared/edge/metrics.ts";
import { consoleMetrics } from "./metrics.ts";

const specs: readonly MetricSpec[] = Object.values(consoleMetrics);
const readme = readFileSync(new URL("README.md", import.meta.url), "utf8");

test.each(specs.map((spec) => [spec.name, spec] as const))(
  "%s has a good name, a sentence of help, and its line in the README",
  (name, spec) => {
    expect(name).toMatch(/^kvmesh_console_[a-z_]+$/u);
    expect(name.endsWith("_total")).toBe(spec.kind === "counter");
    if (spec.kind === "histogram") expect(name).toMatch(/_(?:seconds|bytes|tokens|blocks|ratio)$/u);
    expect(spec.help).toMatch(/^[A-Z].*\.$/u);
    expect(readme).toContain(`\`${name}\``);
    expect(readme).toContain(spec.help);
  },
);
