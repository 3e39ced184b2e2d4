import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  addPeerKey,
  createKeysFile,
  hashSeedFingerprint,
  joinProof,
  loadKeys,
  peerProof,
  requirePeerKey,
  verifyProof,
} from "./keys.ts";

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-keys-"));
  path = join(folder, "mesh.keys");
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe("keys file", () => {
  test("is made readable by its owner alone and loads again", () => {
    createKeysFile(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const keys = loadKeys(path);
    expect(keys.hashSeed).toHaveLength(32);
    expect(hashSeedFingerprint(keys)).toHaveLength(8);
    expect(keys.join[0]?.key).toHaveLength(32);
  });

  test("is never replaced", () => {
    createKeysFile(path);
    expect(() => {
      createKeysFile(path);
    }).toThrow(/EEXIST/);
  });

  test("is refused when others may read it, with the command that mends it", () => {
    createKeysFile(path);
    chmodSync(path, 0o644);
    expect(() => loadKeys(path)).toThrow(/mode 0644.*chmod 600/);
  });

  test("may be without a peer key, which a router with peers is told to add", () => {
    createKeysFile(path);
    expect(addPeerKey(path)).toBe(false);
    const { peer, ...older } = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
    expect(peer).toHaveLength(1);
    writeFileSync(path, JSON.stringify(older), { mode: 0o600 });
    const before = loadKeys(path);
    expect(() => {
      requirePeerKey(before, path);
    }).toThrow(/mesh\.keys has no peer key.*add "peer": \[\{"id".*openssl rand/);

    expect(addPeerKey(path)).toBe(true);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const after = loadKeys(path);
    requirePeerKey(after, path);
    expect(after.peer[0]?.key).toHaveLength(32);
    expect({ ...after, peer: [] }).toEqual(before);
  });

  test("names what is wrong in it", () => {
    writeFileSync(path, '{"hashSeed":"zz","join":[]}', { mode: 0o600 });
    expect(() => loadKeys(path)).toThrow(/hashSeed: must be 64 hex digits.*placement/);
    writeFileSync(path, "no json", { mode: 0o600 });
    expect(() => loadKeys(path)).toThrow(/is not JSON/);
    expect(() => loadKeys(join(folder, "none"))).toThrow(/cannot be read.*kvmesh up/);
  });
});

describe("proofs", () => {
  const input = {
    workerId: "w1",
    engineAddress: "127.0.0.1:8100",
    workerStartMs: 5n,
    engineLife: 1n,
    nonce: new Uint8Array(16),
  };

  test("cover every part of the hello", () => {
    const key = Buffer.alloc(32, 1);
    const proof = joinProof(key, input);
    const ring = [{ id: "a", key }];
    expect(verifyProof(ring, proof, (k) => joinProof(k, input))).toBe(true);
    const changes = [
      { workerId: "w2" },
      { engineAddress: "127.0.0.1:8101" },
      { workerStartMs: 6n },
      { engineLife: 2n },
      { nonce: new Uint8Array(16).fill(1) },
    ];
    for (const change of changes) {
      expect(verifyProof(ring, proof, (k) => joinProof(k, { ...input, ...change }))).toBe(false);
    }
    expect(
      verifyProof([{ id: "b", key: Buffer.alloc(32, 2) }], proof, (k) => joinProof(k, input)),
    ).toBe(false);
    expect(verifyProof(ring, new Uint8Array(0), (k) => joinProof(k, input))).toBe(false);
  });

  test("of peers cover who, which life, to whom, and the nonce", () => {
    const key = Buffer.alloc(32, 1);
    const peer = { instance: "r1", epoch: 1n, challenger: "r0", nonce: new Uint8Array(16) };
    const proof = peerProof(key, peer);
    expect(peerProof(key, { ...peer })).toEqual(proof);
    const changes = [
      { instance: "r2" },
      { epoch: 2n },
      { challenger: "r2" },
      { nonce: new Uint8Array(16).fill(1) },
    ];
    for (const change of changes) expect(peerProof(key, { ...peer, ...change })).not.toEqual(proof);
  });
});
