import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { RouterConfig } from "./config.ts";
import { costTerms } from "./core/placement/candidate.ts";
import { policyNames } from "./core/placement/policy.ts";
import { routerMetrics } from "./metrics.ts";

const readme = readFileSync(new URL("README.md", import.meta.url), "utf8");
const rows = readme
  .split("\n")
  .map((line) => line.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|")));
const row = (name: string): string[] | undefined =>
  rows.find((cells) => cells[1] === `\`${name}\``);

describe("router metrics", () => {
  test.each(Object.values(routerMetrics))(
    "$name is named by the rules and in the README",
    (spec) => {
      expect(spec.name).toMatch(/^(kvmesh_router|gen_ai_server)_[a-z0-9_]+$/);
      expect(spec.name.endsWith("_total")).toBe(spec.kind === "counter");
      expect(spec.name).not.toMatch(/_ms|percent/);
      expect(row(spec.name)?.slice(2, 5)).toEqual([spec.kind, spec.labels.join(", "), spec.help]);
    },
  );

  test("the README names no other", () => {
    const named = rows.flatMap(
      ([, name]) => /^`(kvmesh_router_\w+|gen_ai_\w+)`$/.exec(name ?? "")?.[1] ?? [],
    );
    expect(named.sort()).toEqual(
      Object.values(routerMetrics)
        .map((m) => m.name)
        .sort(),
    );
  });
});

interface SettingSchema {
  readonly default?: unknown;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly properties?: Readonly<Record<string, SettingSchema>>;
}

/** Settings by dotted path. */
function settingsOf(schema: SettingSchema, prefix = ""): [string, SettingSchema][] {
  return Object.entries(schema.properties ?? {}).flatMap(([key, value]) =>
    value.properties === undefined
      ? [[`${prefix}${key}`, value] as [string, SettingSchema]]
      : settingsOf(value, `${prefix}${key}.`),
  );
}

describe("router settings", () => {
  const settings = settingsOf(z.toJSONSchema(RouterConfig, { io: "input" }) as SettingSchema);
  const english = (n: number): string => n.toLocaleString("en-US");

  test.each(settings)("%s is in the README with its default and range", (path, schema) => {
    const [, , value, range, meaning] = row(path) ?? [];
    expect(value).toBe(`\`${JSON.stringify(schema.default)}\``);
    if (schema.minimum !== undefined) {
      const isOpen = (schema.maximum ?? Infinity) >= Number.MAX_SAFE_INTEGER;
      expect(range).toBe(
        isOpen
          ? `≥ ${english(schema.minimum)}`
          : `${english(schema.minimum)}–${english(schema.maximum ?? 0)}`,
      );
    }
    expect(meaning?.length).toBeGreaterThan(5);
  });
});

test("the README has a line for each policy and each cost term", () => {
  for (const policy of policyNames) expect(row(policy)?.[2]?.length).toBeGreaterThan(10);
  for (const term of costTerms) expect(readme).toMatch(new RegExp(`^\\| [^|]*\`${term}\``, "m"));
});
