import { pino } from "pino";
import { expect, test } from "vitest";
import { memberFacts } from "../../../test/support/router-builders.ts";
import { monoMs } from "../../shared/core/ids.ts";
import { ModelRuntimes } from "./model-runtimes.ts";

test("a worker without tokenizer, or with another, leaves its pool's as it is", () => {
  const warned: string[] = [];
  const log = pino({ level: "warn" }, { write: (line: string) => warned.push(line) });
  const runtimes = new ModelRuntimes({ hashSeed: new Uint8Array(32), log, cacheFolder: "" });
  const first = memberFacts(0, { tokenizerSha256: "a".repeat(64), addsSpecialTokens: true });
  const { pool } = first;
  runtimes.learn(memberFacts(1, { tokenizerSha256: "", addsSpecialTokens: false }));
  expect(runtimes.get(pool)?.addsSpecialTokens).toBe(false);
  runtimes.learn(first);
  for (const tokenizerSha256 of ["", "b".repeat(64)]) {
    runtimes.learn(memberFacts(1, { tokenizerSha256, addsSpecialTokens: false }));
  }
  expect(runtimes.get(pool)?.addsSpecialTokens).toBe(true);
  expect(warned.map((line) => line.includes(memberFacts(1).workerId))).toEqual([true, true]);
  expect(runtimes.claim(first, 1, monoMs(0))).toContain(first.tokenizerSha256);
});
