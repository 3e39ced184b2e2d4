import { fromBase64url, toBase64url } from "./base64url.ts";
import { ByteReader } from "./byte-reader.ts";
import { ByteWriter } from "./byte-writer.ts";
import {
  findPlanFault,
  legRoles,
  placementLifeMsMax,
  relayEngines,
  type GuardSettings,
  type Placement,
  type PlacementForecast,
  type PlacementLeg,
} from "./placement.ts";

/*
 * Form of a token, before it is written as base64url: version (1 byte), key id (text), the placement, and HMAC-SHA-256
 * over all of that (32 bytes). Numbers are varints, text is UTF-8 behind its length. A version is never changed: a new
 * field makes a new version, and relays read both while routers are replaced.
 */

/** Header in which a router hands a placement to a relay. */
export const placementHeader = "x-kvmesh-placement";

/** Longest token, characters of the header's value. */
export const placementTokenSizeMax = 8_192;

const version = 1;
const macSize = 32;
const digestSize = 32;
/** How far the router's clock may be ahead of the relay's, ms. */
const clockSkewMsMax = 5_000;
const flagGuard = 1;
const flagSalted = 2;

/** HMAC-SHA-256 of a message under one key, 32 bytes. Given by the edge, which has node:crypto. */
export type Mac = (message: Uint8Array) => Uint8Array;

/** A key by its name in mesh.keys, as the function that it stands for. */
export interface TokenKey {
  readonly id: string;
  readonly mac: Mac;
}

/** Why a token is not believed. */
export type TokenRefusal =
  | "missing"
  | "too_long"
  | "malformed"
  | "unsupported_version"
  | "unknown_key"
  | "bad_signature"
  | "not_yet_valid"
  | "expired";

/** A believed placement, or why there is none. */
export type TokenReading =
  | { readonly kind: "valid"; readonly placement: Placement; readonly keyId: string }
  | { readonly kind: "refused"; readonly reason: TokenRefusal; readonly message: string };

/**
 * Signs a placement. Throws `RangeError` for one that no relay would take: legs that do not fit each other, a digest of
 * the wrong size, a life above `placementLifeMsMax`, or a token above `placementTokenSizeMax`. About 3 µs and the MAC.
 */
export function signPlacement(placement: Placement, key: TokenKey): string {
  const fault = findPlanFault(placement.legs);
  if (fault !== undefined) throw new RangeError(`placement ${placement.decisionId} ${fault}`);
  if (placement.bodySha256.length !== digestSize) {
    throw new RangeError(`digest of ${String(placement.bodySha256.length)} bytes, not 32`);
  }
  const lifeMs = placement.expiresUnixMs - placement.issuedUnixMs;
  if (lifeMs <= 0 || lifeMs > placementLifeMsMax) {
    throw new RangeError(`placement lives ${String(lifeMs)} ms, not 1 to ${placementLifeMsMax}`);
  }
  const out = new ByteWriter();
  out.byte(version);
  out.text(key.id);
  writePlacement(out, placement);
  out.raw(key.mac(out.written()));
  const text = toBase64url(out.written());
  if (text.length > placementTokenSizeMax) {
    throw new RangeError(`token of ${text.length} characters, at most ${placementTokenSizeMax}`);
  }
  return text;
}

/**
 * Reads a token. Only a token that one of `keys` signed, not one byte changed, at a time between issue and expiry, is
 * valid; the signature is judged before anything but version and key id is read. Never throws.
 */
export function readPlacement(
  text: string | undefined,
  keys: readonly TokenKey[],
  nowUnixMs: number,
): TokenReading {
  if (text === undefined || text === "") return refused("missing", `no ${placementHeader} header`);
  if (text.length > placementTokenSizeMax) {
    return refused(
      "too_long",
      `token of ${text.length} characters, at most ${placementTokenSizeMax}`,
    );
  }
  const bytes = fromBase64url(text);
  if (bytes === undefined || bytes.length <= macSize) {
    return refused("malformed", "not a token: not base64url, or too short");
  }
  const signed = bytes.subarray(0, bytes.length - macSize);
  const head = new ByteReader(signed);
  const given = head.byte();
  if (given !== version) {
    return refused("unsupported_version", `token version ${given}; this relay reads ${version}`);
  }
  const keyId = head.text();
  if (head.isFaulty) return refused("malformed", "token ends inside its key id");
  const key = keys.find(({ id }) => id === keyId);
  if (key === undefined) {
    return refused("unknown_key", "signed with a placement key that is not in mesh.keys here");
  }
  if (!equalBytes(key.mac(signed), bytes.subarray(bytes.length - macSize))) {
    return refused("bad_signature", "the signature does not fit the token");
  }
  const placement = readBody(signed, head.at);
  if (placement === undefined) return refused("malformed", "signed, but not a placement");
  return judgeTimes(placement, keyId, nowUnixMs);
}

function judgeTimes(placement: Placement, keyId: string, nowUnixMs: number): TokenReading {
  const { issuedUnixMs, expiresUnixMs } = placement;
  if (nowUnixMs < issuedUnixMs - clockSkewMsMax) {
    const aheadMs = Math.round(issuedUnixMs - nowUnixMs);
    return refused("not_yet_valid", `issued ${aheadMs} ms from now; compare the hosts' clocks`);
  }
  if (nowUnixMs >= expiresUnixMs) {
    const lateMs = Math.round(nowUnixMs - expiresUnixMs);
    return refused("expired", `expired ${lateMs} ms ago; ask for a new placement`);
  }
  return { kind: "valid", placement, keyId };
}

function refused(reason: TokenRefusal, message: string): TokenReading {
  return { kind: "refused", reason, message };
}

/** Whether a body is the one that was placed: its SHA-256 against the placement's. */
export function isPlacedBody(placement: Placement, sha256: Uint8Array): boolean {
  return equalBytes(placement.bodySha256, sha256);
}

/** Equality of bytes, in a time that depends on the length alone. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= (a[i] as number) ^ (b[i] as number);
  return difference === 0;
}

function writePlacement(out: ByteWriter, placement: Placement): void {
  const { guard, forecast } = placement;
  out.byte((guard === undefined ? 0 : flagGuard) | (placement.salted ? flagSalted : 0));
  out.count(placement.issuedUnixMs);
  out.count(placement.expiresUnixMs - placement.issuedUnixMs);
  out.raw(placement.bodySha256);
  for (const text of [
    placement.decisionId,
    placement.router,
    placement.model,
    placement.pool,
    placement.tenant,
    placement.traceparent,
  ]) {
    out.text(text);
  }
  out.byte(placement.legs.length);
  for (const leg of placement.legs) writeLeg(out, leg);
  if (guard !== undefined) {
    out.real(guard.freezeItlMultiple);
    out.real(guard.freezeMsMin);
    out.count(guard.migrationsMax);
  }
  for (const value of forecastValues(forecast)) out.real(value);
}

function writeLeg(out: ByteWriter, leg: PlacementLeg): void {
  out.byte(legRoles.indexOf(leg.role));
  out.byte(relayEngines.indexOf(leg.engine));
  out.text(leg.workerId);
  out.text(leg.address);
  out.count(leg.workerStartMs);
  out.count(leg.engineLife);
  out.text(leg.bootstrap);
  out.count(leg.dpRank === undefined ? 0 : leg.dpRank + 1);
}

function forecastValues(forecast: PlacementForecast): number[] {
  return [
    forecast.promptTokens,
    forecast.cachedTokens,
    forecast.prefillMs,
    forecast.transferMs,
    forecast.transferBytes,
    forecast.ttftMs,
    forecast.itlMs,
  ];
}

function readBody(signed: Uint8Array, from: number): Placement | undefined {
  const input = new ByteReader(signed, from);
  const flags = input.byte();
  const issuedUnixMs = input.count();
  const expiresUnixMs = issuedUnixMs + input.count();
  const bodySha256 = input.raw(digestSize);
  const decisionId = input.text();
  const router = input.text();
  const model = input.text();
  const pool = input.text();
  const tenant = input.text();
  const traceparent = input.text();
  const legs = readLegs(input);
  const guard = (flags & flagGuard) === 0 ? undefined : readGuard(input);
  const forecast = readForecast(input);
  if (!input.isDone || legs === undefined || findPlanFault(legs) !== undefined) return undefined;
  if (flags > (flagGuard | flagSalted) || expiresUnixMs - issuedUnixMs > placementLifeMsMax)
    return undefined;
  return {
    decisionId,
    router,
    legs,
    bodySha256,
    model,
    pool,
    tenant,
    salted: (flags & flagSalted) !== 0,
    ...(guard === undefined ? {} : { guard }),
    forecast,
    traceparent,
    issuedUnixMs,
    expiresUnixMs,
  };
}

function readLegs(input: ByteReader): readonly PlacementLeg[] | undefined {
  const count = input.byte();
  if (count > 2) return undefined;
  const legs: PlacementLeg[] = [];
  for (let i = 0; i < count; i++) {
    const role = legRoles[input.byte()];
    const engine = relayEngines[input.byte()];
    const workerId = input.text();
    const address = input.text();
    const workerStartMs = input.count();
    const engineLife = input.count();
    const bootstrap = input.text();
    const rank = input.count();
    if (role === undefined || engine === undefined) return undefined;
    const dpRank = rank === 0 ? {} : { dpRank: rank - 1 };
    legs.push({ role, engine, workerId, address, workerStartMs, engineLife, bootstrap, ...dpRank });
  }
  return legs;
}

function readGuard(input: ByteReader): GuardSettings {
  return {
    freezeItlMultiple: input.real(),
    freezeMsMin: input.real(),
    migrationsMax: input.count(),
  };
}

function readForecast(input: ByteReader): PlacementForecast {
  return {
    promptTokens: input.real(),
    cachedTokens: input.real(),
    prefillMs: input.real(),
    transferMs: input.real(),
    transferBytes: input.real(),
    ttftMs: input.real(),
    itlMs: input.real(),
  };
}
