import { MeshError } from "../../shared/core/errors.ts";
import { parseTrace } from "../core/trace-tree.ts";
import { renderTrace } from "../core/trace-view.ts";

/** Longest wait for the console, ms. */
const timeoutMs = 5_000;
/** Largest answer read: 512 spans of 64 KB. */
const answerBytesMax = 32 * 1024 * 1024;

/** Where the text goes; the process's own streams, or a test's. */
export interface TextSink {
  write(text: string): unknown;
  /** Terminal width; absent when it is not a terminal. */
  readonly columns?: number;
  readonly isTTY?: boolean;
}

/** Options of `kvmesh trace`. */
export interface TraceCommandOptions {
  /** `last`, or a trace, request or decision id. */
  readonly target: string;
  /** Such as `http://127.0.0.1:8088`. */
  readonly consoleUrl: string;
  /** The console's JSON instead of the drawing. */
  readonly json: boolean;
  readonly stdout: TextSink;
  /** Default: the process's stderr. */
  readonly stderr?: TextSink;
}

/** Paths that a target may mean, tried in order. */
function pathsOf(target: string): string[] {
  if (target === "last") return ["/api/traces/last"];
  if (/^[0-9a-f]{32}$/iu.test(target)) return [`/api/traces/${target.toLowerCase()}`];
  const id = encodeURIComponent(target);
  const decision = `/api/by-decision/${id}`;
  const request = `/api/by-request/${id}`;
  // Decision ids are `<router instance>.<epoch>.<n>`; request ids are mostly UUIDs, but callers choose them.
  return /\.\d+\.\d+$/u.test(target) ? [decision, request] : [request, decision];
}

async function ask(url: string): Promise<{ readonly status: number; readonly text: string }> {
  const response = await fetch(url, { signal: AbortSignal.timeout(timeoutMs) });
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array>) {
    size += chunk.length;
    if (size > answerBytesMax)
      throw new Error(`answer larger than ${answerBytesMax.toString()} bytes`);
    chunks.push(chunk);
  }
  return { status: response.status, text: Buffer.concat(chunks).toString("utf8") };
}

/** The console's own message in an error body; the body's beginning when it has another shape. */
function errorMessage(text: string): string {
  try {
    const parsed = JSON.parse(text) as { error?: { message?: unknown } };
    if (typeof parsed.error?.message === "string") return parsed.error.message;
  } catch {
    // Not JSON: something else listens on that port.
  }
  return text.slice(0, 200).trim();
}

async function findTrace(consoleUrl: string, target: string): Promise<string> {
  const base = consoleUrl.replace(/\/+$/u, "");
  let last = { status: 0, text: "" };
  for (const path of pathsOf(target)) {
    try {
      last = await ask(`${base}${path}`);
    } catch (error) {
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new MeshError(
        "not_found",
        `no console answers at ${base} (${reason}): start it with "kvmesh up", or name another with --console`,
      );
    }
    if (last.status === 200) return last.text;
    if (last.status !== 404) break;
  }
  const message = errorMessage(last.text);
  if (last.status === 404) {
    const either =
      pathsOf(target).length > 1
        ? `no trace with request or decision id ${target} is held`
        : message;
    throw new MeshError("not_found", either);
  }
  throw new MeshError("invalid_request", `${base} answered ${String(last.status)}: ${message}`);
}

/**
 * Prints one trace. Exit codes: 0 printed, 1 no such trace or no usable console, 2 a target that cannot be an id. Every
 * failure is one line on stderr.
 */
export async function traceCommand(options: TraceCommandOptions): Promise<number> {
  const { target, stdout } = options;
  const stderr = options.stderr ?? process.stderr;
  if (target === "" || target.length > 200) {
    stderr.write(
      `kvmesh: the id must have 1 to 200 characters; say "last" for the newest request\n`,
    );
    return 2;
  }
  try {
    const text = await findTrace(options.consoleUrl, target);
    if (options.json) {
      stdout.write(`${text.trimEnd()}\n`);
      return 0;
    }
    const trace = parseTrace(JSON.parse(text));
    const view = { width: stdout.columns ?? 120, color: stdout.isTTY === true };
    stdout.write(`${renderTrace(trace, view)}\n`);
    return 0;
  } catch (error) {
    stderr.write(`kvmesh: ${error instanceof Error ? error.message : String(error)}\n`);
    return 1;
  }
}
