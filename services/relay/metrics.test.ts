import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { relayMetrics } from "./metrics.ts";

describe("relay metrics", () => {
  const readme = readFileSync(new URL("README.md", import.meta.url), "utf8");
  const rows = readme.split("\n").map((line) => line.split("|").map((cell) => cell.trim()));

  test.each(Object.values(relayMetrics))(
    "$name is named by the rules and in the README",
    (spec) => {
      expect(spec.name).toMatch(/^kvmesh_relay_[a-z0-9_]+$/);
      expect(spec.name.endsWith("_total")).toBe(spec.kind === "counter");
      expect(spec.name).not.toMatch(/_ms|percent/);
      const row = rows.find((cells) => cells[1] === `\`${spec.name}\``);
      expect(row?.slice(2, 5)).toEqual([spec.kind, spec.labels.join(", "), spec.help]);
    },
  );
});
