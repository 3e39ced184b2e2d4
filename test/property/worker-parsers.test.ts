import { readFileSync } from "node:fs";
import { encode } from "@msgpack/msgpack";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readVllmMetrics } from "../../services/worker/core/load-sample.ts";
import { decodeKvEventBatch } from "../../services/worker/core/kv-events/decode.ts";
import {
  parsePrometheusText,
  type PrometheusSample,
} from "../../services/worker/core/prometheus-text.ts";
import { U64Map } from "../../services/worker/core/u64-map.ts";

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const token = fc.oneof(fc.nat(127), fc.nat(0xffff), fc.nat({ max: 0xffff_ffff }));
const optional = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | null> => fc.option(arbitrary);

const storedFields = fc.record({
  hashes: fc.array(u64, { maxLength: 5 }),
  parent: optional(u64),
  tokens: fc.array(token, { maxLength: 40 }),
  size: fc.integer({ min: 1, max: 512 }),
  loraId: optional(fc.nat(9)),
  medium: optional(fc.constantFrom("GPU", "CPU")),
  loraName: optional(fc.string()),
  group: optional(fc.nat(3)),
  kind: optional(fc.constantFrom("full_attention", "mamba")),
  length: fc.integer({ min: 5, max: 11 }),
  form: fc.constantFrom("array", "map"),
});

describe("KV event decoder", () => {
  test("reads what the reference encoder writes, in both forms and with any tail missing", () => {
    fc.assert(
      fc.property(
        fc.double({ noNaN: true, min: 0, max: 4e9 }),
        fc.array(storedFields, { maxLength: 6 }),
        (ts, list) => {
          const events = list.map((e) => {
            const array = [
              "BlockStored",
              e.hashes,
              e.parent,
              e.tokens,
              e.size,
              e.loraId,
              e.medium,
              e.loraName,
              null,
              e.group,
              e.kind,
            ];
            if (e.form === "array") return array.slice(0, e.length);
            return {
              kv_cache_spec_kind: e.kind,
              type: "BlockStored",
              token_ids: e.tokens,
              block_hashes: e.hashes,
              block_size: e.size,
              parent_block_hash: e.parent,
              lora_id: e.loraId,
              medium: e.medium,
              lora_name: e.loraName,
              group_idx: e.group,
            };
          });
          const result = decodeKvEventBatch(encode([ts, events, 0], { useBigInt64: true }));
          if (!result.ok) throw new Error(result.failure.code);
          expect(result.batch.publishedSeconds).toBe(ts);
          result.batch.events.forEach((event, i) => {
            const e = list[i];
            if (e === undefined || event.kind !== "stored") throw new Error("another event");
            const has = (at: number): boolean => e.form === "map" || e.length > at;
            const pairs = e.hashes.flatMap((hash) => [
              Number(hash & 0xffff_ffffn),
              Number(hash >> 32n),
            ]);
            expect([...event.hashes]).toEqual(pairs);
            expect(event.hasParent).toBe(e.parent !== null);
            expect((BigInt(event.parentHi) << 32n) | BigInt(event.parentLo)).toBe(e.parent ?? 0n);
            expect([...event.tokens]).toEqual(e.tokens);
            expect(event.blockSizeTokens).toBe(e.size);
            expect(event.loraId).toBe(has(5) ? (e.loraId ?? undefined) : undefined);
            expect(event.medium).toBe(has(6) ? (e.medium ?? undefined) : undefined);
            expect(event.loraName).toBe(has(7) ? (e.loraName ?? undefined) : undefined);
            expect(event.groupIndex).toBe(has(9) ? (e.group ?? undefined) : undefined);
            expect(event.specKind).toBe(has(10) ? (e.kind ?? undefined) : undefined);
          });
        },
      ),
      { numRuns: 1_000 },
    );
  });

  test("never throws and never keeps part of a payload, whatever the bytes", () => {
    const valid = encode(
      [
        1.5,
        [
          {
            type: "BlockStored",
            block_hashes: [1n, 2n ** 60n],
            parent_block_hash: 3n,
            token_ids: [1, 300, 70_000],
            block_size: 2,
            extra_keys: [["a", ["m", 1]], null],
          },
          ["BlockRemoved", [4n], "GPU", 0],
        ],
        0,
      ],
      { useBigInt64: true },
    );
    const mutated = fc
      .array(fc.record({ at: fc.nat(valid.length - 1), to: fc.nat(255) }), {
        minLength: 1,
        maxLength: 6,
      })
      .map((changes) => {
        const bytes = valid.slice();
        for (const { at, to } of changes) bytes[at] = to;
        return bytes;
      });
    const cut = fc.nat(valid.length - 1).map((size) => valid.slice(0, size));
    const anything = fc.anything().map((value) => {
      try {
        return encode(value);
      } catch {
        return new Uint8Array(0);
      }
    });
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), mutated, cut, anything), (bytes) => {
        const result = decodeKvEventBatch(bytes);
        if (result.ok)
          for (const event of result.batch.events)
            expect(event.kind).toMatch(/^(stored|removed|cleared)$/);
        else expect(result.failure.offset).toBeLessThanOrEqual(bytes.length);
      }),
      { numRuns: 20_000 },
    );
  });
});

describe("U64Map", () => {
  test("is a map", () => {
    const half = fc.oneof(fc.nat(6), fc.constantFrom(0x8000_0000, 0xffff_ffff));
    const step = fc.record({
      do: fc.constantFrom("set", "set", "delete", "clear"),
      lo: half,
      hi: half,
      value: fc.nat(99),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 400, size: "max" }), (steps) => {
        const map = new U64Map();
        const model = new Map<string, number>();
        for (const { do: what, lo, hi, value } of steps) {
          const key = `${String(lo)},${String(hi)}`;
          if (what === "set") {
            map.set(lo, hi, value);
            model.set(key, value);
          } else if (what === "delete") expect(map.delete(lo, hi)).toBe(model.delete(key));
          else if (value === 0) {
            map.clear();
            model.clear();
          }
          expect(map.get(lo, hi)).toBe(model.get(key) ?? -1);
          expect(map.count).toBe(model.size);
        }
        const seen = new Map<string, number>();
        map.forEach((lo, hi, value) => seen.set(`${String(lo)},${String(hi)}`, value));
        expect(seen).toEqual(model);
      }),
      { numRuns: 500 },
    );
  });
});

describe("Prometheus text", () => {
  const name = fc.constantFrom("a", "vllm:x_total", "B_1");
  const labelName = fc.constantFrom("engine", "model_name", "le");
  const sample = fc.record({
    name,
    labels: fc.dictionary(labelName, fc.string({ unit: "grapheme" })),
    value: fc.oneof(fc.double(), fc.integer(), fc.constantFrom(NaN, Infinity, -Infinity)),
    tail: fc.constantFrom("", " 1700000000000", ' # {trace_id="x"} 1'),
    gap: fc.constantFrom(" ", "  ", "\t"),
  });
  const written = (value: number): string =>
    Number.isFinite(value)
      ? String(value)
      : Number.isNaN(value)
        ? "NaN"
        : value > 0
          ? "+Inf"
          : "-Inf";
  const escaped = (text: string): string =>
    text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"');

  test("reads back what the format says, between comments and other metrics", () => {
    fc.assert(
      fc.property(fc.array(sample, { maxLength: 20 }), (samples) => {
        const lines = samples.flatMap(({ name: n, labels, value, tail, gap }) => {
          const inner = Object.entries(labels).map(([k, v]) => `${k}="${escaped(v)}"`);
          const block = inner.length === 0 ? "" : `{${inner.join(",")},}`;
          return ["# HELP a text", 'other{a="b"} 1', `${n}${block}${gap}${written(value)}${tail}`];
        });
        const seen: PrometheusSample[] = [];
        const malformed = parsePrometheusText(
          lines.join("\n"),
          new Set(["a", "vllm:x_total", "B_1"]),
          (one) => seen.push(one),
        );
        expect(malformed).toBe(0);
        expect(seen.map((one) => ({ ...one, labels: Object.fromEntries(one.labels) }))).toEqual(
          samples.map(({ name: n, labels, value }) => ({
            name: n,
            labels: { ...labels },
            value: Object.is(value, -0) ? 0 : value,
          })),
        );
      }),
      { numRuns: 500 },
    );
  });

  test("never throws on any text", () => {
    const pieces = fc.array(
      fc.constantFrom(
        "a",
        "{",
        "}",
        '"',
        "\\",
        "=",
        ",",
        "\n",
        " ",
        "1",
        "vllm:num_requests_running",
        "NaN",
        "#",
        "é",
      ),
      { maxLength: 60 },
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          pieces.map((list) => list.join("")),
        ),
        (text) => {
          parsePrometheusText(text, new Set(["a"]), ({ name: n }) => {
            expect(n).toBe("a");
          });
          const reading = readVllmMetrics(text, 0);
          for (const value of Object.values(reading?.load ?? {}))
            expect(value).toBeGreaterThanOrEqual(0);
        },
      ),
      { numRuns: 5_000 },
    );
  });

  test("reads the metrics page of a real vLLM 0.32.0", () => {
    const page = readFileSync(
      new URL("../fixtures/vllm-events/metrics-idle.txt", import.meta.url),
      "utf8",
    );
    expect(readVllmMetrics(page, 0)).toMatchObject({
      processStartSeconds: 1_795_400_653.62,
      cache: { blockSizeTokens: 32, blockCount: 96, prefixCaching: true },
      load: {
        running: 0,
        waiting: 0,
        kvUsageRatio: 0,
        promptTokens: 5,
        prefixQueryTokens: 5,
        generatedTokens: 8,
        finishedRequests: 1,
        preemptions: 0,
        interTokenCount: 7,
        interTokenSecondsSum: 0.03546410999990712,
        prefillCount: 1,
        prefillSecondsSum: 0.05350422100002561,
      },
    });
    // Of a prompt whose KV came from another engine nothing was computed here.
    const external = 'vllm:prompt_tokens_by_source_total{engine="0",source="external_kv_transfer"}';
    const local = 'vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 1';
    const pulled = `vllm:num_requests_running{engine="0"} 1\nvllm:prompt_tokens_total{engine="0"} 900\n`;
    expect(readVllmMetrics(`${pulled}${external} 880\n${local}\n`, 0)?.load.promptTokens).toBe(20);
    expect(readVllmMetrics(`${pulled}${external} 901\n`, 0)?.load.promptTokens).toBe(0);
    expect(readVllmMetrics(page, 1)).toBeUndefined();
    expect(readVllmMetrics("process_start_time_seconds 5\n", 0)).toBeUndefined();
  });
});
