import { spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import { packageRoot } from "../../services/cli/edge/up/mesh.ts";
import { cacheEnv } from "./test-cache.ts";

/** A `kvmesh` that runs as a person would run it, with what it has printed. */
export interface RunningCommand {
  readonly pid: number;
  stdout(): string;
  stderr(): string;
  kill(signal: NodeJS.Signals): void;
  /** Resolves when a stream holds the text; fails when the command ends first or after `withinMs`. */
  prints(text: string, withinMs?: number): Promise<void>;
  /** Exit code once it has ended. */
  ended(): Promise<number>;
}

/** Commands that still run; a test process that ends early must not leave them behind. */
const open = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of open) child.kill("SIGKILL");
});

/** Starts `kvmesh` with these words. */
export function startKvmesh(
  words: readonly string[],
  options: { readonly cwd?: string; readonly env?: Readonly<Record<string, string>> } = {},
): RunningCommand {
  const child = spawn(process.execPath, [join(packageRoot, "services/cli/bin.mjs"), ...words], {
    cwd: options.cwd ?? packageRoot,
    env: { ...process.env, ...cacheEnv, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  open.add(child);
  let out = "";
  let err = "";
  let code: number | undefined;
  const waiting = new Set<() => void>();
  const changed = (): void => {
    for (const wake of waiting) wake();
  };
  child.stdout.on("data", (bytes: Buffer) => {
    out += bytes.toString();
    changed();
  });
  child.stderr.on("data", (bytes: Buffer) => {
    err += bytes.toString();
    changed();
  });
  const exited = new Promise<number>((resolve) => {
    child.once("close", (exitCode) => {
      open.delete(child);
      code = exitCode ?? -1;
      resolve(code);
      changed();
    });
  });
  return {
    pid: child.pid ?? 0,
    stdout: () => out,
    stderr: () => err,
    kill: (signal) => void child.kill(signal),
    ended: () => exited,
    prints: (text, withinMs = 60_000) =>
      new Promise((resolve, reject) => {
        const settle = (error?: Error): void => {
          waiting.delete(look);
          clearTimeout(late);
          if (error === undefined) resolve();
          else reject(error);
        };
        const said = (): string => `stdout:\n${out}\nstderr:\n${err}`;
        const look = (): void => {
          if (out.includes(text) || err.includes(text)) settle();
          else if (code !== undefined) {
            settle(new Error(`ended with ${code} without printing "${text}"; ${said()}`));
          }
        };
        const late = setTimeout(() => {
          settle(new Error(`did not print "${text}" within ${withinMs} ms; ${said()}`));
        }, withinMs);
        waiting.add(look);
        look();
      }),
  };
}

/** Runs `kvmesh` to its end. */
export async function kvmesh(
  words: readonly string[],
  options: { readonly cwd?: string; readonly env?: Readonly<Record<string, string>> } = {},
): Promise<{ readonly code: number; readonly stdout: string; readonly stderr: string }> {
  const command = startKvmesh(words, options);
  const code = await command.ended();
  return { code, stdout: command.stdout(), stderr: command.stderr() };
}
