import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { MeshError } from "../core/errors.ts";

const hexKey = z.string().regex(/^[0-9a-f]{64}$/, "must be 64 hex digits (32 bytes)");
const namedKey = z.strictObject({ id: z.string().min(1).max(64), key: hexKey });
const keyListForm =
  'must list 1 to 8 keys, each with "id" and "key" (64 hex digits); "kvmesh up" makes a file that has all of them';
const keyList = z.array(namedKey, keyListForm).min(1, keyListForm).max(8, keyListForm);

const KeysFile = z.strictObject({
  hashSeed: hexKey,
  placement: keyList,
  tenantSalt: keyList,
  resume: keyList,
  join: keyList,
  /** Only routers need it: a host without one can keep its keys file without. */
  peer: keyList.optional(),
});

/** A secret with the name under which peers refer to it. */
export interface NamedKey {
  readonly id: string;
  readonly key: Buffer;
}

/** The mesh's secrets. In each list every key verifies and the first signs. */
export interface MeshKeys {
  readonly hashSeed: Buffer;
  readonly placement: readonly NamedKey[];
  readonly tenantSalt: readonly NamedKey[];
  readonly resume: readonly NamedKey[];
  readonly join: readonly NamedKey[];
  /** By which routers know each other; empty in a file for workers alone. See `requirePeerKey`. */
  readonly peer: readonly NamedKey[];
}

/** First 8 bytes of SHA-256 of the hash seed: peers compare it without telling the seed. */
export function hashSeedFingerprint(keys: MeshKeys): Buffer {
  return createHash("sha256").update(keys.hashSeed).digest().subarray(0, 8);
}

/**
 * Reads `mesh.keys` (JSON, mode 0600). Errors (`invalid_request`) name the file and how to mend it:
 * missing, readable by others, or malformed.
 */
export function loadKeys(path: string): MeshKeys {
  let text: string;
  try {
    const mode = statSync(path).mode & 0o777;
    if ((mode & 0o077) !== 0) {
      throw new MeshError(
        "invalid_request",
        `keys file ${path} has mode 0${mode.toString(8)}; only its owner may read it: chmod 600 ${path}`,
      );
    }
    text = readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof MeshError) throw error;
    throw new MeshError(
      "invalid_request",
      `keys file ${path} cannot be read: ${(error as Error).message}; "kvmesh up" makes one`,
      { cause: error },
    );
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new MeshError("invalid_request", `keys file ${path} is not JSON`, { cause: error });
  }
  const parsed = KeysFile.safeParse(json);
  if (!parsed.success) {
    const problems = parsed.error.issues.map((i) => `${i.path.join(".")}: ${i.message}`).join("; ");
    throw new MeshError("invalid_request", `keys file ${path}: ${problems}`);
  }
  const named = (list: readonly z.infer<typeof namedKey>[]): NamedKey[] =>
    list.map(({ id, key }) => ({ id, key: Buffer.from(key, "hex") }));
  return {
    hashSeed: Buffer.from(parsed.data.hashSeed, "hex"),
    placement: named(parsed.data.placement),
    tenantSalt: named(parsed.data.tenantSalt),
    resume: named(parsed.data.resume),
    join: named(parsed.data.join),
    peer: named(parsed.data.peer ?? []),
  };
}

/** Refuses (`invalid_request`) keys without one for peers, for a router that has peers. */
export function requirePeerKey(keys: MeshKeys, path: string): void {
  if (keys.peer.length > 0) return;
  throw new MeshError(
    "invalid_request",
    `keys file ${path} has no peer key, by which routers know each other: add ` +
      `"peer": [{"id": "1", "key": "<64 hex digits>"}] to it, the same for all routers ` +
      `(openssl rand -hex 32 makes one)`,
  );
}

/** Adds the peer key to a keys file that has none; whether it did. Throws what `loadKeys` throws. */
export function addPeerKey(path: string): boolean {
  if (loadKeys(path).peer.length > 0) return false;
  const file = KeysFile.parse(JSON.parse(readFileSync(path, "utf8")));
  const draft = `${path}.new`;
  const text = `${JSON.stringify({ ...file, peer: newKeyList() }, undefined, 2)}\n`;
  writeFileSync(draft, text, { mode: 0o600 });
  renameSync(draft, path);
  return true;
}

function newKey(): string {
  return randomBytes(32).toString("hex");
}

function newKeyList(): z.infer<typeof keyList> {
  return [{ id: randomBytes(4).toString("hex"), key: newKey() }];
}

/** Writes a new keys file, mode 0600. Fails when the file exists: keys are never replaced by accident. */
export function createKeysFile(path: string): void {
  const file: z.infer<typeof KeysFile> = {
    hashSeed: newKey(),
    placement: newKeyList(),
    tenantSalt: newKeyList(),
    resume: newKeyList(),
    join: newKeyList(),
    peer: newKeyList(),
  };
  writeFileSync(path, `${JSON.stringify(file, undefined, 2)}\n`, { mode: 0o600, flag: "wx" });
}

/** What a join proof covers. */
export interface JoinProofInput {
  readonly workerId: string;
  readonly engineAddress: string;
  readonly workerStartMs: bigint;
  readonly engineLife: bigint;
  readonly nonce: Uint8Array;
}

function u64(value: bigint): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(value);
  return out;
}

function hmacParts(key: Buffer, label: string, parts: readonly Uint8Array[]): Buffer {
  const hmac = createHmac("sha256", key).update(label);
  for (const part of parts) {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(part.length);
    hmac.update(length).update(part);
  }
  return hmac.digest();
}

/** HMAC by which a worker shows that it holds a join key; bound to its id, address, epoch and the router's nonce. */
export function joinProof(key: Buffer, input: JoinProofInput): Buffer {
  return hmacParts(key, "kvmesh-join-v1", [
    Buffer.from(input.workerId),
    Buffer.from(input.engineAddress),
    Buffer.concat([u64(input.workerStartMs), u64(input.engineLife)]),
    input.nonce,
  ]);
}

/** What a peer's proof covers. */
export interface PeerProofInput {
  /** Who proves itself. */
  readonly instance: string;
  readonly epoch: bigint;
  /** To whom, and the nonce that it sent for this stream. */
  readonly challenger: string;
  readonly nonce: Uint8Array;
}

/** HMAC by which a router shows a peer that it holds a peer key; good for one stream to one router. */
export function peerProof(key: Buffer, input: PeerProofInput): Buffer {
  return hmacParts(key, "kvmesh-peer-v2", [
    Buffer.from(input.instance),
    u64(input.epoch),
    Buffer.from(input.challenger),
    input.nonce,
  ]);
}

/** Whether one of the keys gives this proof, in constant time per key. */
export function verifyProof(
  keys: readonly NamedKey[],
  proof: Uint8Array,
  make: (key: Buffer) => Buffer,
): boolean {
  let ok = false;
  for (const { key } of keys) {
    const expected = make(key);
    if (expected.length === proof.length && timingSafeEqual(expected, proof)) ok = true;
  }
  return ok;
}
