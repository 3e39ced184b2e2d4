import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../../shared/core/random.ts";
import { StreamAccessLogsMessage } from "../../../shared/gen/envoy/service/accesslog/v3/als.ts";
import { outcome, recordsByGeneratedCode } from "../../../../test/support/message-oracles.ts";
import { randomAccessEntry, randomAccessLogs } from "../../../../test/support/random-messages.ts";
import { RecordReader } from "./record-reader.ts";

const reader = new RecordReader();
const encoded = (message: StreamAccessLogsMessage): Uint8Array =>
  StreamAccessLogsMessage.encode(message).finish();

/** Reads, checks against the generated decoder, and says whether that one was needed. */
function isOrdinary(bytes: Uint8Array): boolean {
  const records = outcome(() => reader.read(bytes));
  expect(records).toEqual(outcome(() => recordsByGeneratedCode(bytes)));
  return reader.readOrdinary(bytes) !== undefined;
}

test("any message of the log means the same to the generated decoder", () => {
  let ordinary = 0;
  for (let seed = 0; seed < 3_000; seed++) {
    if (isOrdinary(encoded(randomAccessLogs(new SeededRandom(seed))))) ordinary++;
  }
  expect(ordinary).toBeGreaterThan(500);
});

describe("what the generated decoder judges", () => {
  const entry = randomAccessEntry(new SeededRandom(1));
  const one = encoded({
    identifier: undefined,
    logEntries: { $case: "httpLogs", value: { logEntry: [entry] } },
  });
  test.each<[string, number[] | Uint8Array]>([
    ["the first message of a stream", [0x0a, 0x00, ...one]],
    ["records given twice, of which the last count", [...one, ...one]],
    ["half a message", one.subarray(0, -3)],
    ["a group", [...one, 0x63, 0x64]],
    ["a record in a number's place", [0x12, 0x02, 0x08, 0x01]],
    ["a status given twice", [0x12, 8, 0x0a, 6, 0x22, 4, 0x0a, 0, 0x0a, 0]],
  ])("%s", (_name, bytes) => {
    expect(isOrdinary(Uint8Array.from(bytes))).toBe(false);
  });

  test("an empty message holds no record", () => {
    expect(reader.readOrdinary(new Uint8Array(0))).toEqual([]);
  });
});
