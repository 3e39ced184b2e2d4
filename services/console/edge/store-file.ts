import { existsSync, mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import type { Logger } from "pino";
import { MeshError } from "../../shared/core/errors.ts";
import { schema, schemaVersion } from "./store-schema.ts";

/** SQLite result codes, the low byte of extended ones (sqlite.org/rescode.html). */
const sqlite = { busy: 5, corrupt: 11, full: 13, notADatabase: 26 } as const;

/** The result code of an error that SQLite raised; `undefined` for any other. */
export function sqliteCode(error: unknown): number | undefined {
  if (!(error instanceof Error) || !("errcode" in error)) return undefined;
  return typeof error.errcode === "number" ? error.errcode & 0xff : undefined;
}

/** Whether the error says that the file itself is damaged. */
export function isDamage(error: unknown): boolean {
  const code = sqliteCode(error);
  return code === sqlite.corrupt || code === sqlite.notADatabase;
}

/** The damage found by the check at opening, or a file of another schema. */
class UnusableStore extends Error {}

function open(path: string): DatabaseSync {
  const database = new DatabaseSync(path);
  try {
    // Traces are soft state: after a power cut the last commits may be gone, the file stays whole.
    database.exec(`
      PRAGMA locking_mode = EXCLUSIVE;
      PRAGMA journal_mode = WAL;
      PRAGMA synchronous = NORMAL;
      PRAGMA journal_size_limit = 67108864;
      PRAGMA cache_size = -16384;
      PRAGMA temp_store = MEMORY;`);
    const check = database.prepare("PRAGMA quick_check(1)").get()?.["quick_check"];
    if (check !== "ok") throw new UnusableStore(`check failed: ${String(check)}`);
    const version = database.prepare("PRAGMA user_version").get()?.["user_version"];
    if (version !== 0 && version !== schemaVersion) {
      throw new UnusableStore(
        `schema version ${String(version)}, expected ${schemaVersion.toString()}`,
      );
    }
    database.exec(`BEGIN; ${schema} PRAGMA user_version = ${schemaVersion.toString()}; COMMIT;`);
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
}

/** Gives a damaged file and its journal other names; returns the new one. */
function moveAside(path: string, unixMs: number): string {
  const stamp = new Date(unixMs).toISOString().replaceAll(/[:.]/gu, "-");
  const aside = `${path}.damaged-${stamp}`;
  for (const suffix of ["", "-wal", "-shm"]) {
    if (existsSync(path + suffix)) renameSync(path + suffix, aside + suffix);
  }
  return aside;
}

/**
 * Opens `traces.sqlite` in the folder, which is made when missing, or a store in memory for `memory`.
 * A damaged file is moved aside with an error line and a new one is started (`onReset`). Throws `already_exists` when
 * another process holds the file, and what the system says when the folder cannot be used.
 */
export function openStoreFile(options: {
  readonly stateDir: string;
  readonly log: Logger;
  readonly unixMs: () => number;
  readonly onReset: () => void;
}): DatabaseSync {
  if (options.stateDir === "memory") return open(":memory:");
  mkdirSync(options.stateDir, { recursive: true });
  const path = join(options.stateDir, "traces.sqlite");
  try {
    return open(path);
  } catch (error) {
    if (sqliteCode(error) === sqlite.busy) {
      throw new MeshError(
        "already_exists",
        `${path} is in use by another process: stop that console, or set console.store.stateDir to another folder`,
        { cause: error },
      );
    }
    if (!isDamage(error) && !(error instanceof UnusableStore)) throw error;
    const aside = moveAside(path, options.unixMs());
    options.onReset();
    options.log.error(
      { event: "store_moved_aside", path, aside, reason: (error as Error).message },
      "trace store cannot be read: moved aside, starting an empty one",
    );
    return open(path);
  }
}
