import { createHash, createHmac } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { fromBase64url, toBase64url } from "./base64url.ts";
import {
  relayEngines,
  type LegRole,
  type Placement,
  type PlacementLeg,
  type RelayEngine,
} from "./placement.ts";
import {
  isPlacedBody,
  placementTokenSizeMax,
  readPlacement,
  signPlacement,
  type TokenKey,
} from "./placement-token.ts";

const key = (id: string, secret: string): TokenKey => ({
  id,
  mac: (message) => createHmac("sha256", secret).update(message).digest(),
});
const newKey = key("k2", "new");
const oldKey = key("k1", "old");
const keys = [newKey, oldKey];
const issuedUnixMs = 1_790_000_000_000;

const leg = (over: Partial<PlacementLeg> = {}): PlacementLeg => ({
  role: "whole",
  workerId: "worker-1",
  address: "10.0.0.7:8000",
  workerStartMs: issuedUnixMs - 60_000,
  engineLife: 1,
  engine: "vllm",
  bootstrap: "",
  ...over,
});

const placement = (over: Partial<Placement> = {}): Placement => ({
  decisionId: "router-0.1790000000.17",
  router: "router-0",
  legs: [
    leg({ role: "prefill" }),
    leg({ role: "decode", address: "10.0.0.8:8000", workerId: "worker-2", dpRank: 3 }),
  ],
  bodySha256: createHash("sha256").update("{}").digest(),
  model: "qwen3",
  pool: "default",
  tenant: "",
  salted: false,
  guard: { freezeItlMultiple: 20, freezeMsMin: 400, migrationsMax: 3 },
  forecast: {
    promptTokens: 12_000,
    cachedTokens: 64,
    prefillMs: 410.25,
    transferMs: 21.5,
    transferBytes: 3.9e9,
    ttftMs: 455,
    itlMs: 12.5,
  },
  traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
  issuedUnixMs,
  expiresUnixMs: issuedUnixMs + 10_000,
  ...over,
});

const plain = (value: Placement): Placement => ({
  ...value,
  bodySha256: Uint8Array.from(value.bodySha256),
});

const text = fc.string({ unit: "grapheme", maxLength: 64 });
const real = fc.double({ noNaN: true, min: 0, max: 1e15 }).map((value) => value + 0);
const count = fc.maxSafeNat();

const randomLeg = (role: LegRole, engine: RelayEngine) =>
  fc
    .record({
      workerId: text,
      address: text,
      workerStartMs: count,
      engineLife: count,
      bootstrap: text,
      dpRank: fc.option(fc.nat({ max: 1_000 }), { nil: undefined }),
    })
    .map(({ dpRank, ...rest }): PlacementLeg => {
      return { ...rest, role, engine, ...(dpRank === undefined ? {} : { dpRank }) };
    });

const randomLegs = fc.constantFrom(...relayEngines).chain((engine) =>
  fc.oneof(
    fc.tuple(randomLeg("whole", engine)),
    fc
      .tuple(randomLeg("prefill", engine), randomLeg("decode", engine))
      .filter(([a, b]) => a.address !== b.address),
  ),
);

const randomPlacement = fc
  .record({
    decisionId: text,
    router: text,
    legs: randomLegs,
    bodySha256: fc.uint8Array({ minLength: 32, maxLength: 32 }),
    model: text,
    pool: text,
    tenant: text,
    salted: fc.boolean(),
    guard: fc.option(
      fc.record({ freezeItlMultiple: real, freezeMsMin: real, migrationsMax: count }),
      { nil: undefined },
    ),
    forecast: fc.record({
      promptTokens: real,
      cachedTokens: real,
      prefillMs: real,
      transferMs: real,
      transferBytes: real,
      ttftMs: real,
      itlMs: real,
    }),
    traceparent: text,
    issuedUnixMs: fc.integer({ min: 10_000, max: 4_000_000_000_000 }),
    lifeMs: fc.integer({ min: 1, max: 30_000 }),
  })
  .map(({ guard, lifeMs, ...rest }): Placement => {
    const expiresUnixMs = rest.issuedUnixMs + lifeMs;
    return { ...rest, expiresUnixMs, ...(guard === undefined ? {} : { guard }) };
  });

describe("base64url", () => {
  test("writes what node:buffer writes and reads it back", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        const written = toBase64url(bytes);
        expect(written).toBe(Buffer.from(bytes).toString("base64url"));
        expect(fromBase64url(written)).toEqual(bytes);
      }),
    );
  });

  test("has one text for each value", () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 20 }), (candidate) => {
        const bytes = fromBase64url(candidate);
        if (bytes !== undefined) expect(toBase64url(bytes)).toBe(candidate);
      }),
      { numRuns: 2_000 },
    );
    expect(fromBase64url("QQ")).toEqual(Uint8Array.of(65));
    for (const wrong of ["QR", "Q", "QQ==", "Q\u0141", "Q+", "QUJDR", "QUJDRF"]) {
      expect(fromBase64url(wrong), wrong).toBeUndefined();
    }
  });
});

describe("placement token", () => {
  test("gives back what was signed, with any active key", () => {
    fc.assert(
      fc.property(randomPlacement, fc.constantFrom(...keys), (signed, signer) => {
        const token = signPlacement(signed, signer);
        expect(readPlacement(token, keys, signed.issuedUnixMs)).toEqual({
          kind: "valid",
          placement: signed,
          keyId: signer.id,
        });
      }),
    );
  });

  test("is refused with any bit flipped, in its bytes and in its text", () => {
    const token = signPlacement(placement(), newKey);
    const bytes = Buffer.from(token, "base64url");
    for (let bit = 0; bit < 8 * bytes.length; bit++) {
      const forged = Uint8Array.from(bytes);
      forged[bit >> 3] = (forged[bit >> 3] as number) ^ (1 << (bit & 7));
      expect(readPlacement(toBase64url(forged), keys, issuedUnixMs).kind).toBe("refused");
    }
    for (let at = 0; at < token.length; at++) {
      for (let bit = 0; bit < 7; bit++) {
        const code = token.charCodeAt(at) ^ (1 << bit);
        const forged = token.slice(0, at) + String.fromCharCode(code) + token.slice(at + 1);
        expect(readPlacement(forged, keys, issuedUnixMs).kind).toBe("refused");
      }
    }
  });

  test("is refused cut short, prolonged, or put together from two", () => {
    const one = signPlacement(placement(), newKey);
    const other = signPlacement(placement({ tenant: "acme" }), newKey);
    for (let at = 0; at < one.length; at++) {
      expect(readPlacement(one.slice(0, at), keys, issuedUnixMs).kind).toBe("refused");
      const joined = one.slice(0, at) + other.slice(at);
      if (joined !== one && joined !== other) {
        expect(readPlacement(joined, keys, issuedUnixMs).kind).toBe("refused");
      }
    }
    expect(readPlacement(`${one}AAAA`, keys, issuedUnixMs).kind).toBe("refused");
  });

  test("refuses any text without throwing", () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.string({ maxLength: 300 }), fc.base64String({ maxLength: 300 })),
        (candidate) => {
          expect(readPlacement(candidate, keys, issuedUnixMs).kind).toBe("refused");
        },
      ),
      { numRuns: 2_000 },
    );
  });

  test("refuses signed bytes that are no placement, without throwing", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (content) => {
        const head = Uint8Array.of(1, 2, ...Buffer.from("k2"), ...content);
        const token = toBase64url(Uint8Array.of(...head, ...newKey.mac(head)));
        const reading = readPlacement(token, keys, issuedUnixMs);
        expect(reading).toMatchObject({ kind: "refused", reason: "malformed" });
      }),
      { numRuns: 1_000 },
    );
  });

  test("names why it is refused", () => {
    const token = signPlacement(placement(), newKey);
    const reasonOf = (value: string | undefined, among = keys, now = issuedUnixMs): string => {
      const reading = readPlacement(value, among, now);
      return reading.kind === "refused" ? reading.reason : "valid";
    };
    const otherVersion = Uint8Array.from(Buffer.from(token, "base64url"));
    otherVersion[0] = 2;
    expect(reasonOf(undefined)).toBe("missing");
    expect(reasonOf("")).toBe("missing");
    expect(reasonOf("A".repeat(placementTokenSizeMax + 1))).toBe("too_long");
    expect(reasonOf("%%%")).toBe("malformed");
    expect(reasonOf(toBase64url(otherVersion))).toBe("unsupported_version");
    expect(reasonOf(token, [oldKey])).toBe("unknown_key");
    expect(reasonOf(token, [key("k2", "another secret")])).toBe("bad_signature");
    expect(reasonOf(token, keys, issuedUnixMs - 5_001)).toBe("not_yet_valid");
    expect(reasonOf(token, keys, issuedUnixMs - 5_000)).toBe("valid");
    expect(reasonOf(token, keys, issuedUnixMs + 9_999)).toBe("valid");
    expect(reasonOf(token, keys, issuedUnixMs + 10_000)).toBe("expired");
  });

  test("is not signed for a plan that no relay would carry out", () => {
    const pair = placement().legs;
    const plans: (readonly PlacementLeg[])[] = [
      [],
      [...pair, leg()],
      [leg({ role: "decode" })],
      [...pair].reverse(),
      [leg({ role: "prefill" }), leg({ role: "decode" })],
      [
        leg({ role: "prefill" }),
        leg({ role: "decode", engine: "sglang", address: "10.0.0.8:8000" }),
      ],
    ];
    for (const legs of plans) {
      expect(() => signPlacement(placement({ legs }), newKey)).toThrow(RangeError);
    }
    for (const over of [
      { bodySha256: new Uint8Array(31) },
      { expiresUnixMs: issuedUnixMs },
      { expiresUnixMs: issuedUnixMs + 30_001 },
      { model: "m".repeat(8_000) },
    ]) {
      expect(() => signPlacement(placement(over), newKey)).toThrow(RangeError);
    }
  });

  test("is small and binds the body", () => {
    const signed = placement();
    expect(signPlacement(signed, newKey).length).toBeLessThan(640);
    const digest = (body: string): Uint8Array => createHash("sha256").update(body).digest();
    expect(isPlacedBody(plain(signed), digest("{}"))).toBe(true);
    expect(isPlacedBody(plain(signed), digest("{ }"))).toBe(false);
  });
});
