import { fromBase64url, toBase64url } from "../../../shared/core/placement-token/base64url.ts";
import { ByteReader } from "../../../shared/core/placement-token/byte-reader.ts";
import { ByteWriter } from "../../../shared/core/placement-token/byte-writer.ts";
import { equalBytes, type TokenKey } from "../../../shared/core/placement-token/placement-token.ts";
import type { StreamPoint } from "../guard/guarded-stream.ts";

/** Header in which a client sends the token of the last event that it got. */
export const resumeHeader = "x-kvmesh-resume";

const version = 1;
const macSize = 32;
/** Longest token, characters. */
const tokenSizeMax = 4_096;
/** How long a token is good, ms: as long as a buddy keeps a stream. */
export const resumeLifeMs = 60_000;
/** Most ids that a token carries because the buddy has not confirmed them yet. */
export const looseIdsMax = 64;

/** What a resume token says. */
export interface ResumePoint {
  /** Relay that keeps the stream's ids. */
  readonly buddy: string;
  /** Name of the stream there, 16 bytes. */
  readonly key: Uint8Array;
  /** SHA-256 of the request's body. */
  readonly bodySha256: Uint8Array;
  readonly point: StreamPoint;
  /** Ids from `looseFrom` to the point, which the buddy may not have. */
  readonly looseFrom: number;
  readonly looseIds: Uint32Array;
  readonly issuedUnixMs: number;
}

/** Why a token is not believed. */
export type ResumeRefusal = "malformed" | "unknown_key" | "bad_signature" | "expired";

/** Signs a token, or nothing where it would be too long. */
export function signResume(resume: ResumePoint, key: TokenKey): string | undefined {
  const { point } = resume;
  const out = new ByteWriter();
  out.byte(version);
  out.text(key.id);
  out.text(resume.buddy);
  out.raw(resume.key);
  out.raw(resume.bodySha256);
  out.count(resume.issuedUnixMs);
  out.count(point.index);
  out.count(point.cleanIndex);
  out.text(point.looseText);
  out.text(point.finish ?? "");
  out.byte(point.stop === undefined ? 0 : 1);
  if (point.stop !== undefined) {
    out.text(point.stop.tail);
    out.count(point.stop.sent);
    out.count(point.stop.skip);
  }
  out.count(resume.looseFrom);
  out.count(resume.looseIds.length);
  for (const id of resume.looseIds) out.count(id);
  out.raw(key.mac(out.written()));
  const text = toBase64url(out.written());
  return text.length > tokenSizeMax ? undefined : text;
}

/** Reads a token; the signature is judged before anything but version and key id. Never throws. */
export function readResume(
  text: string,
  keys: readonly TokenKey[],
  nowUnixMs: number,
): ResumePoint | ResumeRefusal {
  const bytes = text.length > tokenSizeMax ? undefined : fromBase64url(text);
  if (bytes === undefined || bytes.length <= macSize) return "malformed";
  const signed = bytes.subarray(0, bytes.length - macSize);
  const input = new ByteReader(signed);
  if (input.byte() !== version) return "malformed";
  const keyId = input.text();
  const key = keys.find(({ id }) => id === keyId);
  if (input.isFaulty || key === undefined) return "unknown_key";
  if (!equalBytes(key.mac(signed), bytes.subarray(bytes.length - macSize))) return "bad_signature";
  const resume = readSigned(input);
  if (!input.isDone || resume === undefined) return "malformed";
  return nowUnixMs > resume.issuedUnixMs + resumeLifeMs ? "expired" : resume;
}

function readSigned(input: ByteReader): ResumePoint | undefined {
  const buddy = input.text();
  const key = input.raw(16);
  const bodySha256 = input.raw(32);
  const issuedUnixMs = input.count();
  const index = input.count();
  const cleanIndex = input.count();
  const looseText = input.text();
  const finish = input.text();
  const hasStop = input.byte() === 1;
  const stop = hasStop
    ? { tail: input.text(), sent: input.count(), skip: input.count() }
    : undefined;
  const looseFrom = input.count();
  const count = input.count();
  if (count > looseIdsMax || looseFrom + count !== index || cleanIndex > index) return undefined;
  const looseIds = new Uint32Array(count);
  for (let i = 0; i < count; i++) looseIds[i] = input.count();
  const point: StreamPoint = {
    index,
    cleanIndex,
    looseText,
    ...(stop === undefined ? {} : { stop }),
    ...(finish === "" ? {} : { finish }),
  };
  return { buddy, key, bodySha256, point, looseFrom, looseIds, issuedUnixMs };
}
