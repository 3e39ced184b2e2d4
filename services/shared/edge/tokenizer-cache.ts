import { createHash, randomUUID } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Deserializer, Serializer } from "node:v8";
import type { TokenizerTables } from "../core/tokenizer/tables.ts";

/** Raised whenever the layout of the tables changes; older files are then built again and replaced. */
const formatVersion = 5;
const digestSize = 32;

function cachePath(json: Uint8Array, folder: string): string {
  const name = createHash("sha256").update(json).digest("hex").slice(0, 32);
  return join(folder, `tokenizer-${name}-v${formatVersion}-${process.versions.v8}.bin`);
}

function read(path: string): TokenizerTables | undefined {
  try {
    const file = readFileSync(path);
    const body = file.subarray(digestSize);
    const digest = createHash("sha256").update(body).digest();
    if (!digest.equals(file.subarray(0, digestSize))) return undefined;
    // The plain deserializer gives every array a buffer of its own, which can be handed to another thread.
    const reader = new Deserializer(body);
    reader.readHeader();
    return reader.readValue() as TokenizerTables;
  } catch {
    // Missing, cut short or made by another version: built again.
    return undefined;
  }
}

function write(path: string, folder: string, tables: TokenizerTables): void {
  const partial = `${path}.${randomUUID()}`;
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const writer = new Serializer();
    writer.writeHeader();
    writer.writeValue(tables);
    const body = writer.releaseBuffer();
    const digest = createHash("sha256").update(body).digest();
    // The tables hold the key of the word table's hash: for its owner alone.
    writeFileSync(partial, Buffer.concat([digest, body]), { mode: 0o600 });
    renameSync(partial, path);
  } catch {
    // A cache that cannot be written costs time at the next start, nothing else.
    remove(partial);
  }
}

function remove(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // Its folder does not exist.
  }
}

/**
 * Tables of a tokenizer from the folder of those built before, or built now and put there. Files are named by the
 * digest of the `tokenizer.json`, checked by a digest of their own and replaced whole; about 30 MB each. Blocks:
 * for threads. Throws what `build` throws.
 */
export function buildWithCache(
  json: Uint8Array,
  folder: string,
  build: () => TokenizerTables,
): TokenizerTables {
  if (folder === "") return build();
  const path = cachePath(json, folder);
  const known = read(path);
  if (known !== undefined) return known;
  const tables = build();
  write(path, folder, tables);
  return tables;
}
