import { Registry, collectDefaultMetrics } from "prom-client";
import { MeshCounter, MeshGauge, MeshHistogram } from "./metric-values.ts";

/** One metric of a service's catalogue: the only place where its name is written. */
export interface MetricSpec {
  /** `kvmesh_<service>_<what>_<unit>[_total]`, or a name of the OpenTelemetry conventions. */
  readonly name: string;
  /** Prometheus type. */
  readonly kind: "counter" | "gauge" | "histogram";
  /** One sentence with the unit. */
  readonly help: string;
  /** Label names; values come from closed or capped sets. */
  readonly labels: readonly string[];
  /** Upper bounds, histograms only. */
  readonly buckets?: readonly number[];
}

/** Bounds for decisions around a millisecond, seconds. */
export const decisionBuckets: readonly number[] = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
];
/** Bounds for times to first token, seconds (OpenTelemetry GenAI conventions). */
export const ttftBuckets: readonly number[] = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
];
/** Bounds for whole requests, seconds (OpenTelemetry GenAI conventions). */
export const requestBuckets: readonly number[] = [
  0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
/** Bounds for shares between 0 and 1. */
export const ratioBuckets: readonly number[] = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1];

type MetricOf<S extends MetricSpec> = S["kind"] extends "counter"
  ? MeshCounter<S["labels"][number]>
  : S["kind"] extends "gauge"
    ? MeshGauge<S["labels"][number]>
    : MeshHistogram<S["labels"][number]>;

/** The metrics of a catalogue by key, with their registry. */
export type Metrics<C extends Record<string, MetricSpec>> = {
  readonly [K in keyof C]: MetricOf<C[K]>;
};

function createMetric(
  spec: MetricSpec,
  registry: Registry,
): MeshCounter | MeshGauge | MeshHistogram {
  const { name, help, labels: labelNames } = spec;
  switch (spec.kind) {
    case "counter":
      return new MeshCounter({ name, help, labelNames, registry });
    case "gauge":
      return new MeshGauge({ name, help, labelNames, registry });
    case "histogram":
      return new MeshHistogram(
        { name, help, labelNames, registry },
        spec.buckets ?? requestBuckets,
      );
  }
}

/** Makes every metric of a catalogue in a registry of its own, with Node's process metrics beside them. */
export function createMetrics<const C extends Record<string, MetricSpec>>(
  catalogue: C,
): { readonly registry: Registry; readonly metrics: Metrics<C> } {
  const registry = new Registry();
  // Its timer wakes the process each time: at the default of 10 ms it is most of what an idle service does.
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: 50 });
  const metrics = Object.fromEntries(
    Object.entries(catalogue).map(([key, spec]) => [key, createMetric(spec, registry)]),
  ) as unknown as Metrics<C>;
  return { registry, metrics };
}
