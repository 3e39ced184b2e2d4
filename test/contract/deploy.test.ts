// Files in deploy/ name only what exists: metrics and their labels, span attributes and their values, components.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { z } from "zod";
import { consoleMetrics } from "../../services/console/metrics.ts";
import { relayMetrics } from "../../services/relay/metrics.ts";
import { routerMetrics } from "../../services/router/metrics.ts";
import type { MetricSpec } from "../../services/shared/edge/metrics.ts";
import { attributeCatalogue } from "../../services/shared/core/trace-catalogue.ts";
import { workerMetrics } from "../../services/worker/metrics.ts";

function read<T>(path: string, schema: z.ZodType<T>): T {
  const url = new URL(`../../deploy/${path}`, import.meta.url);
  const text = readFileSync(url, "utf8");
  return schema.parse(parse(text, { strict: true, uniqueKeys: true }));
}

const Rules = z.strictObject({
  groups: z
    .array(
      z.strictObject({
        name: z.string(),
        rules: z.array(
          z.union([
            z.strictObject({ record: z.string(), expr: z.string() }),
            z.strictObject({
              alert: z.string().regex(/^[A-Z][A-Za-z]+$/u),
              expr: z.string(),
              for: z
                .string()
                .regex(/^\d+[smh]$/u)
                .optional(),
              labels: z.strictObject({ severity: z.enum(["page", "ticket"]) }),
              annotations: z.strictObject({ summary: z.string(), action: z.string() }),
            }),
          ]),
        ),
      }),
    )
    .min(1),
});
const Foreign = z.record(z.string(), z.object({ source: z.string(), names: z.array(z.string()) }));
const Scrape = z.object({
  rule_files: z.array(z.string()),
  scrape_configs: z.array(
    z.object({
      job_name: z.string(),
      metrics_path: z.string().optional(),
      static_configs: z.array(z.object({ targets: z.array(z.string()).min(1) })),
    }),
  ),
});
const Components = z.record(z.string(), z.unknown());
const Collector = z.strictObject({
  receivers: Components,
  processors: Components,
  exporters: Components,
  service: z.strictObject({
    pipelines: z.record(
      z.string(),
      z.strictObject({
        receivers: z.array(z.string()),
        processors: z.array(z.string()),
        exporters: z.array(z.string()),
      }),
    ),
  }),
});

const rules = read("prometheus/rules.yaml", Rules).groups.flatMap((group) => group.rules);
const foreign = read("prometheus/foreign-metrics.yaml", Foreign);
const scrape = read("prometheus/prometheus.yaml", Scrape);
const ours: readonly MetricSpec[] = [
  routerMetrics,
  relayMetrics,
  workerMetrics,
  consoleMetrics,
].flatMap((catalogue: Readonly<Record<string, MetricSpec>>) => Object.values(catalogue));

/** Label names that Prometheus or Envoy add to every series. */
const commonLabels = [
  "instance",
  "job",
  "le",
  "envoy_cluster_name",
  "envoy_http_conn_manager_prefix",
];

/** Names of all series that a metric of ours makes. */
function seriesOf(spec: MetricSpec): string[] {
  return spec.kind === "histogram"
    ? ["_bucket", "_sum", "_count"].map((end) => spec.name + end)
    : [spec.name];
}
const specBySeries = new Map(
  ours.flatMap((spec) => seriesOf(spec).map((name) => [name, spec] as const)),
);
const recorded = new Set(rules.flatMap((rule) => ("record" in rule ? [rule.record] : [])));
const foreignNames = new Set(Object.values(foreign).flatMap((system) => system.names));

/** Series selectors of a PromQL expression: name and the labels matched in braces. */
function selectors(expr: string): { name: string; labels: string[] }[] {
  const quoted = expr.replace(/"[^"]*"/gu, '""').replace(/\[[^\]]*\]/gu, "");
  const grouping = quoted.replace(/\b(?:by|without|on|ignoring)\s*\([^)]*\)/gu, " ");
  return [...grouping.matchAll(/([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?!\s*\()(?![\w:])/gu)]
    .filter(([, name]) => !/^(?:and|or|unless|bool|by|without)$/u.test(name ?? ""))
    .map(([, name = "", braces = ""]) => ({
      name,
      labels: [...braces.matchAll(/(\w+)\s*[!=]/gu)].map(([, label = ""]) => label),
    }));
}

describe("Prometheus", () => {
  test("the reader of expressions finds names and labels, and no functions", () => {
    const expr = 'sum by (le) (rate(a_total{x="b{c",y!~"d"}[5m])) / on (z) vllm:e > 0.5 and f == 1';
    expect(selectors(expr)).toEqual([
      { name: "a_total", labels: ["x", "y"] },
      { name: "vllm:e", labels: [] },
      { name: "f", labels: [] },
    ]);
  });

  test.each(rules.map((rule) => ["record" in rule ? rule.record : rule.alert, rule] as const))(
    "rule %s uses only metrics that exist, with labels that they have",
    (_, rule) => {
      const used = selectors(rule.expr);
      expect(used.length).toBeGreaterThan(0);
      for (const { name, labels } of used) {
        const spec = specBySeries.get(name);
        expect(
          spec !== undefined || recorded.has(name) || foreignNames.has(name),
          `${name} is in no metrics.ts and not in foreign-metrics.yaml`,
        ).toBe(true);
        if (spec === undefined) continue;
        const known = [...spec.labels, ...commonLabels];
        expect(
          labels.filter((label) => !known.includes(label)),
          `labels of ${name}`,
        ).toEqual([]);
      }
      const grouped = [...rule.expr.matchAll(/\bby\s*\(([^)]*)\)/gu)].flatMap(([, list = ""]) =>
        list.split(",").map((label) => label.trim()),
      );
      const all = [
        ...commonLabels,
        ...used.flatMap(({ name }) => specBySeries.get(name)?.labels ?? []),
      ];
      expect(grouped.filter((label) => !all.includes(label))).toEqual([]);
    },
  );

  test("every foreign name has a source and is used", () => {
    const used = new Set(rules.flatMap((rule) => selectors(rule.expr).map(({ name }) => name)));
    const text = JSON.stringify(rules);
    for (const { source, names } of Object.values(foreign)) {
      expect(source.length).toBeGreaterThan(20);
      expect(names.filter((name) => !used.has(name) && !text.includes(name))).toEqual([]);
    }
  });

  test("scrapes every process, and the rules' jobs are its jobs", () => {
    const jobs = scrape.scrape_configs.map((job) => job.job_name);
    expect(jobs).toEqual([
      "kvmesh-router",
      "kvmesh-relay",
      "kvmesh-worker",
      "kvmesh-console",
      "engine",
      "envoy",
    ]);
    expect(scrape.rule_files).toEqual(["rules.yaml"]);
    const named = rules.flatMap((rule) => [...rule.expr.matchAll(/job=~?"([^"]*)"/gu)]);
    for (const [, pattern = ""] of named) {
      for (const part of pattern.split("|")) {
        expect(jobs.some((job) => new RegExp(`^(?:${part})$`, "u").test(job))).toBe(true);
      }
    }
    const targets = scrape.scrape_configs.flatMap((job) =>
      job.static_configs.flatMap((group) => group.targets),
    );
    expect(targets.filter((target) => !/^127\.0\.0\.1:\d+$/u.test(target))).toEqual([]);
    expect(new Set(targets).size).toBe(targets.length);
  });
});

describe("the collector", () => {
  const collector = read("collector/collector.yaml", Collector);

  test("has every component of its pipelines, and no other", () => {
    for (const kind of ["receivers", "processors", "exporters"] as const) {
      const used = Object.values(collector.service.pipelines).flatMap((pipeline) => pipeline[kind]);
      expect(new Set(used)).toEqual(new Set(Object.keys(collector[kind])));
    }
  });

  test("keeps traces by attributes and values of the catalogue", () => {
    const text = JSON.stringify(collector.processors);
    const names = [...text.matchAll(/kvmesh\.[a-z_.]+/gu)].map(([name]) => name);
    const specs = new Map(Object.values(attributeCatalogue).map((spec) => [spec.name, spec]));
    expect(names.length).toBeGreaterThanOrEqual(6);
    expect(names.filter((name) => !specs.has(name))).toEqual([]);
    const policies = z
      .object({
        tail_sampling: z.object({
          policies: z.array(
            z.object({
              string_attribute: z
                .object({ key: z.string(), values: z.array(z.string()) })
                .optional(),
              numeric_attribute: z.object({ key: z.string() }).optional(),
            }),
          ),
        }),
      })
      .parse(collector.processors).tail_sampling.policies;
    for (const { string_attribute: text_, numeric_attribute: number } of policies) {
      if (text_ !== undefined) {
        expect(specs.get(text_.key)?.values).toEqual(expect.arrayContaining(text_.values));
      }
      if (number !== undefined) expect(specs.get(number.key)?.type).toBe("int");
    }
  });
});
