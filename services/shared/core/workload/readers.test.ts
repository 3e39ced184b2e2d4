import { describe, expect, test } from "vitest";
import { MeshError } from "../errors.ts";
import {
  detectFormat,
  readAgenticRows,
  readAzureCsv,
  readBailianRows,
  readHashIdRows,
} from "./readers.ts";

const meta = { name: "t", description: "d", licence: "l", source: "s" };
const hashIds = (...lines: string[]) =>
  readHashIdRows(lines, { file: "w.jsonl", meta: { ...meta, blockTokens: 512 } });
const agentic = (...lines: string[]) =>
  readAgenticRows(lines, { file: "w.jsonl", meta: { ...meta, blockTokens: 256 } });
const azure = (...lines: string[]) =>
  readAzureCsv(lines, { file: "w.csv", meta: { ...meta, blockTokens: 16 } });

function problem(read: () => unknown): { message: string; field: string | undefined } {
  try {
    read();
  } catch (error) {
    if (error instanceof MeshError) return { message: error.message, field: error.field };
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("detectFormat", () => {
  test.each([
    ['{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [0]}', "hash-ids"],
    [
      '{"timestamp":1,"session":"a","input_length":1,"output_length":1,"keep":0,"runs":[]}',
      "agentic",
    ],
    ['{"chat_id":1,"parent_chat_id":-1,"timestamp":1,"input_length":1}', "bailian"],
    ["TIMESTAMP,ContextTokens,GeneratedTokens", "azure"],
    ['{"format":"kvmesh.workload","version":1}', "prepared"],
    ['{"format":"other"}', undefined],
    ["{broken", undefined],
    ["a,b,c", undefined],
  ])("%s is %s", (line, format) => {
    expect(detectFormat(line)).toBe(format);
  });
});

describe("readHashIdRows", () => {
  test("reads Mooncake rows, with blank lines between", () => {
    const { requests } = hashIds(
      '{"timestamp": 0, "input_length": 1025, "output_length": 7, "hash_ids": [46, 47, 9007199254740991]}',
      "",
      '{"timestamp": 27, "input_length": 600, "output_length": 0, "hash_ids": [46, 48]}',
    );
    expect(requests).toEqual([
      { atMs: 0, inputTokens: 1025, outputTokens: 7, blockIds: Uint32Array.of(0, 1, 2) },
      { atMs: 27, inputTokens: 600, outputTokens: 1, blockIds: Uint32Array.of(0, 3) },
    ]);
  });

  test("takes rows without hash_ids as sharing nothing", () => {
    expect(
      hashIds('{"timestamp":0,"input_length":5,"output_length":1}').requests[0]?.blockIds,
    ).toHaveLength(0);
  });

  test.each([
    ['{"timestamp":0', "row", "w.jsonl:2: row is not JSON"],
    ["[1]", "row", "w.jsonl:2: row must be a JSON object"],
    ['{"input_length":5,"output_length":1}', "timestamp", "w.jsonl:2: timestamp is missing"],
    [
      '{"timestamp":9,"input_length":0,"output_length":1}',
      "input_length",
      "w.jsonl:2: input_length is 0; it must be a whole number of at least 1",
    ],
    [
      '{"timestamp":9,"input_length":"5","output_length":1}',
      "input_length",
      'w.jsonl:2: input_length is "5"',
    ],
    [
      '{"timestamp":9,"input_length":5,"output_length":1,"hash_ids":[1.5]}',
      "hash_ids[0]",
      "w.jsonl:2: hash_ids[0] is 1.5",
    ],
    [
      '{"timestamp":9,"input_length":512,"output_length":1,"hash_ids":[1,2]}',
      "hash_ids",
      "w.jsonl:2: hash_ids names 2 blocks, but 512 tokens are at most 1 blocks of 512",
    ],
    [
      '{"timestamp":4,"input_length":5,"output_length":1}',
      "timestamp",
      "w.jsonl:2: timestamp goes back from 5 to 4 ms",
    ],
  ])("refuses %s naming file, line and field", (line, field, message) => {
    const found = problem(() =>
      hashIds('{"timestamp":5,"input_length":5,"output_length":1}', line),
    );
    expect(found.field).toBe(field);
    expect(found.message).toContain(message);
  });
});

describe("readBailianRows", () => {
  const row = (chat: number, parent: number, timestamp: number) =>
    JSON.stringify({
      chat_id: chat,
      parent_chat_id: parent,
      timestamp,
      input_length: 40,
      output_length: 5,
      type: "text",
      turn: 1,
      hash_ids: [1_089, 2 ** 40],
    });
  const read = (...lines: string[]) =>
    readBailianRows(lines, { file: "b.jsonl", meta: { ...meta, blockTokens: 16 } });

  test("takes seconds, and the session from the chain of parents", () => {
    const { requests } = read(row(5, -1, 0.5), row(9, 5, 61.114), row(12, 9, 70), row(13, 4, 71));
    expect(requests.map((request) => request.session)).toEqual(["5", "5", "5", "4"]);
    expect(requests[1]?.atMs).toBeCloseTo(61_114, 6);
    expect(requests[1]?.blockIds).toEqual(Uint32Array.of(0, 1));
  });

  test("refuses a row without its ids", () => {
    const found = problem(() => read('{"chat_id":1,"parent_chat_id":-2}'));
    expect(found).toMatchObject({ field: "parent_chat_id" });
    expect(found.message).toContain("b.jsonl:1: parent_chat_id is -2");
  });
});

describe("readAgenticRows", () => {
  const row = (fields: Record<string, unknown>) =>
    JSON.stringify({
      timestamp: 0,
      session: "a",
      input_length: 1024,
      output_length: 3,
      keep: 0,
      runs: [],
      ...fields,
    });

  test("keeps leading blocks of the same session's previous request and appends the ranges", () => {
    const { requests } = agentic(
      row({ runs: [10, 3, 50, 1] }),
      row({ session: "b", timestamp: 1, runs: [90, 1], input_length: 300 }),
      row({ timestamp: 2, keep: 2, runs: [60, 2] }),
      row({ timestamp: 3, keep: 4, runs: [] }),
    );
    expect(requests.map((request) => [...request.blockIds])).toEqual([
      [10, 11, 12, 50],
      [90],
      [10, 11, 60, 61],
      [10, 11, 60, 61],
    ]);
    expect(requests.map((request) => request.session)).toEqual(["a", "b", "a", "a"]);
  });

  test.each([
    [{ keep: 1 }, "keep", "the session's previous request has 0 blocks"],
    [{ runs: [1] }, "runs", "must hold pairs"],
    [{ runs: [1, 0] }, "runs", "counts at least 1"],
    [{ runs: [4294967295, 2] }, "runs", "ids are below 2^32"],
    [{ runs: [0, 5] }, "runs", "gives 5 blocks, but the prompt holds at most 4"],
    [{ runs: [0, 4_000_000_000] }, "runs", "at most 4"],
    [{ session: "" }, "session", "must be a text"],
  ])("refuses %j", (fields, field, message) => {
    const found = problem(() => agentic(row(fields)));
    expect(found.field).toBe(field);
    expect(found.message).toContain("w.jsonl:1: ");
    expect(found.message).toContain(message);
  });
});

describe("readAzureCsv", () => {
  const header = "TIMESTAMP,ContextTokens,GeneratedTokens";

  test("counts times from the first row, to the microsecond", () => {
    const { requests } = azure(
      header,
      "2023-11-16 18:17:03.9799600,4808,10",
      "2023-11-16 18:17:04.0319600,3180,0",
      "2024-05-10 00:00:00.009930+00:00,110,27",
    );
    expect(requests[1]?.atMs).toBeCloseTo(52, 3);
    expect(requests[1]).toMatchObject({ inputTokens: 3180, outputTokens: 1, blockIds: [] });
    expect(requests[2]?.atMs).toBeGreaterThan(1.5e10);
  });

  test.each([
    ["2023-11-16 18:17,1,1", "TIMESTAMP"],
    ["2023-11-16 18:17:03,1", "row"],
    ["2023-11-16 18:17:03,-1,1", "ContextTokens"],
    ["2023-11-16 18:17:03,1,x", "GeneratedTokens"],
  ])("refuses %s", (line, field) => {
    const found = problem(() => azure(header, line));
    expect(found).toMatchObject({ field });
    expect(found.message).toContain("w.csv:2: ");
  });
});
