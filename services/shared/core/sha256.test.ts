import { createHash } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { sha256 } from "./sha256.ts";

test("equals the platform's SHA-256 at every padding boundary", () => {
  for (let size = 0; size <= 200; size++) {
    const message = Uint8Array.from({ length: size }, (_, i) => (i * 7 + size) & 255);
    expect(Buffer.from(sha256(message)).toString("hex")).toBe(
      createHash("sha256").update(message).digest("hex"),
    );
  }
});

test("equals the platform's SHA-256 on arbitrary bytes", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2_000 }), (message) => {
      expect(Buffer.from(sha256(message)).toString("hex")).toBe(
        createHash("sha256").update(message).digest("hex"),
      );
    }),
  );
});
