import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { StreamAccessLogsMessage } from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import { ProcessingRequest } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import { RecordReader } from "../../services/router/edge/access-log/record-reader.ts";
import { RequestReader } from "../../services/router/edge/ext-proc/request-reader.ts";
import {
  outcome,
  plainRequest,
  recordsByGeneratedCode,
  requestByGeneratedCode,
} from "../support/message-oracles.ts";
import {
  mutate,
  once,
  randomAccessLogs,
  randomProcessingRequest,
} from "../support/random-messages.ts";

/** Seconds for each reader; longer runs set the variable. */
const seconds = Number(process.env["KVMESH_FUZZ_SECONDS"] ?? 5) / 2;
const firstSeed = Number(process.env["KVMESH_FUZZ_SEED"] ?? 1);
const batch = 200;
/** Slower than any sane reading of 8 KB by a factor of a thousand. */
const batchMsMax = 20_000;

const captured = (name: string): Uint8Array =>
  readFileSync(join(import.meta.dirname, "..", "fixtures", "envoy", name));
const requests = [captured("process-request-headers.bin"), captured("process-request-body.bin")];
const records = [captured("access-log.bin")];

/** Broken, whole and random bytes, the same for a seed wherever it runs. */
function input(seed: number, whole: readonly Uint8Array[], make: (r: SeededRandom) => Uint8Array) {
  const random = new SeededRandom(seed);
  if (once(random, 20)) return Uint8Array.from({ length: random.int(64) }, () => random.int(256));
  const bytes = once(random, 3) ? (whole[random.int(whole.length)] as Uint8Array) : make(random);
  return once(random, 20) ? bytes : mutate(random, bytes);
}

/** Runs seeds until the time is over; each must give the same through both. Returns how many ran. */
function campaign(
  bytesOf: (seed: number) => Uint8Array,
  lean: (bytes: Uint8Array) => unknown,
  judge: (bytes: Uint8Array) => unknown,
): { cases: number; refused: number } {
  const until = performance.now() + seconds * 1_000;
  let seed = firstSeed;
  let refused = 0;
  while (performance.now() < until) {
    const startedAt = performance.now();
    for (let i = 0; i < batch; i++, seed++) {
      const bytes = bytesOf(seed);
      const expected = outcome(() => judge(bytes));
      if (expected === "refused") refused++;
      expect(
        outcome(() => lean(bytes)),
        `seed ${seed}`,
      ).toEqual(expected);
    }
    expect(performance.now() - startedAt, `seeds before ${seed}`).toBeLessThan(batchMsMax);
  }
  return { cases: seed - firstSeed, refused };
}

describe("bytes from outside", () => {
  const timeout = seconds * 2_000 + 30_000;

  test(
    "ProcessingRequest: the lean reader and the generated code agree on any bytes",
    { timeout },
    () => {
      const reader = new RequestReader();
      const { cases, refused } = campaign(
        (seed) =>
          input(seed, requests, (r) =>
            ProcessingRequest.encode(randomProcessingRequest(r)).finish(),
          ),
        (bytes) => plainRequest(reader.read(bytes)),
        (bytes) => plainRequest(requestByGeneratedCode(bytes)),
      );
      expect(refused).toBeGreaterThan(cases / 50);
      expect(refused).toBeLessThan(cases);
    },
  );

  test("StreamAccessLogsMessage: the same", { timeout }, () => {
    const reader = new RecordReader();
    const { cases, refused } = campaign(
      (seed) =>
        input(seed, records, (r) => StreamAccessLogsMessage.encode(randomAccessLogs(r)).finish()),
      (bytes) => reader.read(bytes),
      recordsByGeneratedCode,
    );
    expect(refused).toBeGreaterThan(cases / 50);
    expect(refused).toBeLessThan(cases);
  });
});
