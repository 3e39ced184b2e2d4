import fc from "fast-check";
import { expect, test } from "vitest";
import { relayProofMessage } from "./relay-proof.ts";

const input = fc.record({
  relay: fc.string({ maxLength: 4 }),
  epoch: fc.nat(),
  h2Address: fc.string({ maxLength: 4 }),
  httpAddress: fc.string({ maxLength: 4 }),
  nonce: fc.uint8Array({ maxLength: 4 }),
});

test("different inputs give different messages", () => {
  fc.assert(
    fc.property(input, input, (one, other) => {
      const same = JSON.stringify(one) === JSON.stringify(other);
      const equal = Buffer.from(relayProofMessage(one)).equals(relayProofMessage(other));
      expect(equal).toBe(same);
    }),
    { numRuns: 1_000 },
  );
});
