import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { preparedLines, readPrepared, type PreparedWorkload } from "./prepared-file.ts";

const sessions = fc.option(fc.constantFrom("a", "b", "c"), { nil: undefined });
const prepared: fc.Arbitrary<PreparedWorkload> = fc
  .array(
    fc.record({
      gapMs: fc.nat(50),
      outputTokens: fc.integer({ min: 1, max: 9 }),
      own: fc.nat(15),
      blockIds: fc.array(fc.nat(30), { maxLength: 12 }),
      session: sessions,
    }),
    { maxLength: 30 },
  )
  .map((rows) => {
    let atMs = 0;
    return {
      workload: {
        name: "n",
        description: "d",
        licence: "l",
        source: "s",
        blockTokens: 16,
        requests: rows.map(({ gapMs, outputTokens, own, blockIds, session }) => ({
          atMs: (atMs += gapMs),
          inputTokens: blockIds.length * 16 + own + 1,
          outputTokens,
          blockIds: Uint32Array.from(blockIds),
          ...(session === undefined ? {} : { session }),
        })),
      },
      defaults: { rateFactor: 2, workers: 4, kvTokensPerWorker: 100, contextTokensMax: 300 },
    };
  });

/** Ids by order of first appearance, which is how a file names them. */
function canonical(value: PreparedWorkload): PreparedWorkload {
  const ordinals = new Map<number, number>();
  return {
    ...value,
    workload: {
      ...value.workload,
      requests: value.workload.requests.map((request) => ({
        ...request,
        blockIds: Uint32Array.from(request.blockIds, (id) => {
          if (!ordinals.has(id)) ordinals.set(id, ordinals.size);
          return ordinals.get(id)!;
        }),
      })),
    },
  };
}

describe("prepared files", () => {
  test("read back as they were written, with ids in order of first appearance", () => {
    fc.assert(
      fc.property(prepared, (value) => {
        expect(readPrepared([...preparedLines(value)], "f")).toEqual(canonical(value));
      }),
    );
  });

  test("refuse a file cut short, an empty one and another version", () => {
    const lines = [
      '{"format":"kvmesh.workload","version":1,"name":"n","description":"d","source":"s","licence":"l","blockTokens":16,"requests":2,"defaults":{"rateFactor":1,"workers":1,"kvTokensPerWorker":1,"contextTokensMax":1}}',
      '{"t":0,"i":16,"o":1,"k":0,"r":[0,1]}',
    ];
    expect(() => readPrepared(lines, "f")).toThrow("f:2: requests are 1, but the header says 2");
    expect(() => readPrepared([], "f")).toThrow("f:1: header is missing");
    expect(() => readPrepared([lines[0]!.replace('"version":1', '"version":2')], "f")).toThrow(
      'f:1: format must be "kvmesh.workload" with version 1',
    );
    expect(() => readPrepared([lines[0]!, lines[1]!.replace("[0,1]", "[0,2]")], "f")).toThrow(
      "f:2: r gives 2 blocks",
    );
  });
});
