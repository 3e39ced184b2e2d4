import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { RouterConfig } from "./config.ts";
import { routerMetrics } from "./metrics.ts";

const readme = readFileSync(new URL("./README.md", import.meta.url), "utf8");

function pathsOf(value: unknown, path: string): string[] {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return [path];
  return Object.entries(value).flatMap(([key, inner]) =>
    pathsOf(inner, path === "" ? key : `${path}.${key}`),
  );
}

test("the README lists every setting with its default, and no other", () => {
  const rows = [...readme.matchAll(/^\| `([A-Za-z.]+)` +\| `(.+?)` +\|$/gm)].map((m) => [
    m[1],
    m[2],
  ]);
  const defaults: unknown = RouterConfig.parse({});
  const valueAt = (path: string): unknown =>
    path
      .split(".")
      .reduce<unknown>((node, key) => (node as Record<string, unknown>)[key], defaults);
  const expected = pathsOf(defaults, "").map((path) => [path, JSON.stringify(valueAt(path))]);
  expect(rows).toEqual(expected);
});

test("the README lists every metric with its kind, and no other", () => {
  const rows = [...readme.matchAll(/^\| `((?:kvmesh_router|gen_ai)_[a-z_]+)` +\| (\w+)/gm)].map(
    (m) => [m[1], m[2]],
  );
  expect(rows).toEqual(Object.values(routerMetrics).map(({ name, kind }) => [name, kind]));
});
