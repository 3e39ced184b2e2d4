import fc from "fast-check";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { describe, expect, test } from "vitest";
import { MeshCounter, MeshGauge, MeshHistogram } from "./metric-values.ts";

const bounds = [0.1, 1, 10];
const two = ["a", "b"] as const;
const label = fc.constantFrom("", "x", "y", 'quo"te', "back\\slash", "new\nline");
const labels = fc.record({ a: label, b: label });
const value = fc.oneof(
  fc.constantFrom(0, 0.1, 1, 10, 11),
  fc.double({ min: 0, max: 20, noNaN: true }),
);

type Step =
  | { readonly kind: "labelled"; readonly labels: { a: string; b: string }; readonly value: number }
  | { readonly kind: "plain"; readonly value: number };
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant("labelled" as const), labels, value }),
  fc.record({ kind: fc.constant("plain" as const), value }),
);

function ours() {
  const registry = new Registry();
  const plain = (name: string) => ({ name, help: `Help of ${name}.`, labelNames: [], registry });
  const labelled = (name: string) => ({ ...plain(name), labelNames: two });
  return {
    registry,
    counter: new MeshCounter(plain("c_total")),
    counterBy: new MeshCounter<"a" | "b">(labelled("cl_total")),
    gauge: new MeshGauge(plain("g")),
    gaugeBy: new MeshGauge<"a" | "b">(labelled("gl")),
    histogram: new MeshHistogram(plain("h"), bounds),
    histogramBy: new MeshHistogram<"a" | "b">(labelled("hl"), bounds),
  };
}

function theirs() {
  const registry = new Registry();
  const registers = [registry];
  const plain = (name: string) => ({ name, help: `Help of ${name}.`, registers });
  const labelled = (name: string) => ({ ...plain(name), labelNames: two });
  return {
    registry,
    counter: new Counter(plain("c_total")),
    counterBy: new Counter(labelled("cl_total")),
    gauge: new Gauge(plain("g")),
    gaugeBy: new Gauge(labelled("gl")),
    histogram: new Histogram({ ...plain("h"), buckets: bounds }),
    histogramBy: new Histogram({ ...labelled("hl"), buckets: bounds }),
  };
}

function count(metrics: ReturnType<typeof ours> | ReturnType<typeof theirs>, one: Step): void {
  if (one.kind === "plain") {
    metrics.counter.inc(one.value);
    metrics.counter.inc();
    metrics.gauge.set(one.value);
    metrics.gauge.inc(2);
    metrics.gauge.dec();
    metrics.histogram.observe(one.value);
    return;
  }
  metrics.counterBy.inc(one.labels, one.value);
  metrics.counterBy.inc({ b: one.labels.b, a: one.labels.a });
  metrics.gaugeBy.set(one.labels, one.value);
  metrics.histogramBy.observe(one.labels, one.value);
  metrics.histogramBy.labels(one.labels).observe(one.value);
}

describe("metrics", () => {
  test("a registry writes the same text as for prom-client's own", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 12 }), async (steps) => {
        const [a, b] = [ours(), theirs()];
        for (const one of steps) {
          count(a, one);
          count(b, one);
        }
        expect(await a.registry.metrics()).toBe(await b.registry.metrics());
      }),
      { numRuns: 200 },
    );
  });

  test("what cannot be counted is left out: telemetry fails nothing", async () => {
    const { counter, histogram } = ours();
    counter.inc(-1);
    counter.inc(Number.NaN);
    histogram.observe(Number.NaN);
    histogram.observe(Infinity);
    expect((await counter.get()).values).toEqual([{ labels: {}, value: 0 }]);
    expect((await histogram.get()).values.at(-1)?.value).toBe(0);
  });

  test("values of labels that left are forgotten", async () => {
    const { counterBy, gaugeBy } = ours();
    counterBy.inc({ a: "x", b: "y" });
    counterBy.inc({ a: "x", b: "z" });
    counterBy.remove({ a: "x", b: "y" });
    gaugeBy.set({ a: "x" }, 7);
    gaugeBy.remove({ a: "x" });
    expect((await counterBy.get()).values).toEqual([{ labels: { a: "x", b: "z" }, value: 1 }]);
    expect((await gaugeBy.get()).values).toEqual([]);
  });

  test("a timer tells what it counted", async () => {
    const { histogram } = ours();
    const seconds = histogram.startTimer()();
    const sum = (await histogram.get()).values.find((v) => v.metricName === "h_sum");
    expect(sum?.value).toBe(seconds);
  });
});
