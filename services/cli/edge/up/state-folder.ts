import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { pid as ownPid } from "node:process";
import { z } from "zod";
import { MeshError } from "../../../shared/core/errors.ts";
import { addPeerKey, createKeysFile, loadKeys } from "../../../shared/edge/keys.ts";
import { isAlive } from "./launcher.ts";

const portNumber = z.number().int().min(0).max(65_535);

const RunFile = z.object({
  schema: z.literal(1),
  /** Process that supervises the mesh. */
  supervisorPid: z.number().int(),
  /** Its start, from the kernel, so that a reused pid is not taken for it; empty where unknown. */
  supervisorStart: z.string(),
  startedUnixMs: z.number(),
  demo: z.boolean(),
  /** Model name to ask for; empty when it is the engines' to say. */
  model: z.string(),
  urls: z.object({
    openai: z.string(),
    trusted: z.string(),
    envoyAdmin: z.string(),
    console: z.string().optional(),
    otlpGrpc: z.string().optional(),
    otlpHttp: z.string().optional(),
  }),
  routers: z.array(
    z.object({ instance: z.string(), control: z.string(), http: z.string(), hot: z.string() }),
  ),
  relays: z
    .array(
      z.object({ instance: z.string(), h2: z.string(), http: z.string(), metrics: z.string() }),
    )
    .default([]),
  members: z.array(
    z.object({
      workerId: z.string(),
      engineUrl: z.string(),
      workerHttp: z.string(),
      kvEvents: z.string().optional(),
    }),
  ),
  keysFile: z.string(),
  blockSizeTokens: z.number().int(),
  processes: z.array(
    z.object({
      name: z.string(),
      pid: z.number().int(),
      ports: z.record(z.string(), portNumber),
      logFile: z.string(),
      /** Deaths that nobody here asked for, when there was one. */
      died: z
        .object({ deaths: z.number().int(), atUnixMs: z.number(), how: z.string() })
        .optional(),
    }),
  ),
});
/** What a running mesh says of itself: `run.json` in the state folder. */
export type MeshRun = z.infer<typeof RunFile>;

/** What `run.json` says and whether it can be believed. */
export type RunState =
  | { readonly kind: "none" }
  | { readonly kind: "running"; readonly run: MeshRun }
  | { readonly kind: "stale"; readonly run: MeshRun }
  | { readonly kind: "unreadable"; readonly problem: string };

/** Largest log that is kept whole, bytes; above it the log is cut and begins anew. */
const logBytesMax = 64 * 1024 * 1024;

/** The folder in which a mesh on this machine keeps its keys, settings, logs and `run.json`. */
export class StateFolder {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /** Path of something in the folder. */
  file(...parts: readonly string[]): string {
    return join(this.path, ...parts);
  }

  /** Log of a process. */
  logFile(process: string): string {
    return this.file("logs", `${process}.log`);
  }

  /** Makes the folder, and the keys file when it is missing; checks it otherwise. Returns the keys file's path. */
  prepare(keysFile: string): string {
    makeFolder(this.file("logs"));
    makeFolder(this.file("config"));
    const keys = keysFile === "" ? this.file("mesh.keys") : keysFile;
    if (!existsSync(keys)) createKeysFile(keys);
    // A file of its own from before routers had a key among themselves gets one; another's is left as it is.
    if (keysFile === "") addPeerKey(keys);
    else loadKeys(keys);
    return keys;
  }

  /** Writes a file of the folder whole or not at all. */
  write(name: string, value: unknown): string {
    const path = this.file(name);
    const draft = `${path}.${String(ownPid)}.new`;
    writeFileSync(draft, `${JSON.stringify(value, undefined, 2)}\n`, { mode: 0o600 });
    chmodSync(draft, 0o600);
    renameSync(draft, path);
    return path;
  }

  /** Begins the logs of a new run: the last run's are kept once, as `<name>.log.1`. */
  beginLog(process: string): string {
    const path = this.logFile(process);
    if (existsSync(path)) renameSync(path, `${path}.1`);
    return path;
  }

  /** Cuts a log that has grown past its bound. Writers append, so they go on at the new end. */
  boundLog(process: string): boolean {
    const path = this.logFile(process);
    if (!existsSync(path) || statSync(path).size <= logBytesMax) return false;
    truncateSync(path);
    return true;
  }

  /** What `run.json` says. */
  readRun(): RunState {
    const path = this.file("run.json");
    if (!existsSync(path)) return { kind: "none" };
    let json: unknown;
    try {
      json = JSON.parse(readFileSync(path, "utf8"));
    } catch (error) {
      return { kind: "unreadable", problem: `${path}: ${(error as Error).message}` };
    }
    const parsed = RunFile.safeParse(json);
    if (!parsed.success) {
      const first = parsed.error.issues[0];
      return {
        kind: "unreadable",
        problem: `${path}: ${first?.path.join(".") ?? ""} ${first?.message ?? ""}`,
      };
    }
    const run = parsed.data;
    const alive =
      isAlive(run.supervisorPid) && processStart(run.supervisorPid) === run.supervisorStart;
    return { kind: alive ? "running" : "stale", run };
  }

  /**
   * Fails with `already_exists` when a mesh runs from this folder, with `invalid_request` when there can be no such folder;
   * removes what a dead one left.
   */
  claim(): void {
    makeFolder(this.path);
    const state = this.readRun();
    if (state.kind === "running") {
      throw new MeshError(
        "already_exists",
        `a mesh runs already (pid ${String(state.run.supervisorPid)}, ${state.run.urls.openai}); stop it with Ctrl-C there or "kill ${String(state.run.supervisorPid)}", or give this one its own folder with --state <folder> and its own ports with --ports-base all-free`,
      );
    }
    this.removeRun();
  }

  /** Says that the mesh runs. */
  writeRun(
    run: Omit<z.input<typeof RunFile>, "schema" | "supervisorPid" | "supervisorStart">,
  ): void {
    this.write("run.json", {
      schema: 1,
      supervisorPid: ownPid,
      supervisorStart: processStart(ownPid),
      ...run,
    } satisfies z.input<typeof RunFile>);
  }

  /** Says that no mesh runs. */
  removeRun(): void {
    rmSync(this.file("run.json"), { force: true });
  }
}

/**
 * Makes a folder and those above it. Fails with `invalid_request` and the path that stands in the way. One folder at a
 * time: Node's own recursive form never ends where a file system refuses with ENOENT, as /proc does.
 */
function makeFolder(path: string): void {
  const missing: string[] = [];
  for (let at = resolve(path); !existsSync(at); at = dirname(at)) missing.unshift(at);
  try {
    for (const one of missing) makeOne(one);
    if (!statSync(path).isDirectory()) throw new Error("it is a file");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? (error as Error).message;
    throw new MeshError(
      "invalid_request",
      `cannot make the state folder ${path} (${code}): name another with --state <folder>`,
      { cause: error },
    );
  }
}

function makeOne(path: string): void {
  try {
    mkdirSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}

/** Start of a process in ticks since boot, as the kernel counts; empty where unknown. */
function processStart(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${String(pid)}/stat`, "utf8");
    // The second field is the name in brackets and may hold blanks; the start is the 22nd field.
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
  } catch {
    return "";
  }
}
