import { existsSync, readFileSync, statSync } from "node:fs";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { MeshError } from "../core/errors.ts";
import { readPrepared, type PreparedWorkload } from "../core/workload/prepared-file.ts";
import {
  detectFormat,
  readAgenticRows,
  readAzureCsv,
  readBailianRows,
  readHashIdRows,
} from "../core/workload/readers.ts";
import { spreadTicks } from "../core/workload/transform.ts";
import { workloadFacts, type Workload } from "../core/workload/workload.ts";

/** Workloads that come with the product, by the name that commands take. */
export const namedWorkloads = ["agentic", "conversation"] as const;

/** Largest file, compressed and unpacked; more is refused before it fills the memory. */
const fileBytesMax = 1_073_741_824;

/** How to read a file that says less than a workload needs. */
export interface WorkloadFileOptions {
  /** Tokens per block of the file's ids; default 512 for `hash_ids` files (16 for Qwen-Bailian), 256 for the agentic stream. */
  readonly blockTokens?: number;
  /** Spreads requests over ticks of this length, ms, for traces with coarse timestamps. */
  readonly spreadTickMs?: number;
}

function refuse(message: string, cause?: unknown): MeshError {
  return new MeshError("invalid_request", message, { field: "workload", cause });
}

/** Lines of a text without copying it; line ends \n or \r\n. */
function* linesOf(text: string): Generator<string> {
  let start = 0;
  while (start < text.length) {
    const end = text.indexOf("\n", start);
    const stop = end === -1 ? text.length : end;
    yield text.slice(start, text[stop - 1] === "\r" ? stop - 1 : stop);
    start = stop + 1;
  }
}

function firstLine(text: string): string {
  for (const line of linesOf(text)) if (line.trim() !== "") return line;
  return "";
}

function readText(path: string): string {
  let bytes: Buffer;
  try {
    const { size } = statSync(path);
    if (size > fileBytesMax) {
      throw refuse(`${path} has ${String(size)} bytes; at most ${String(fileBytesMax)} are read`);
    }
    bytes = readFileSync(path);
  } catch (error) {
    if (error instanceof MeshError) throw error;
    throw refuse(`cannot read ${path}: ${(error as Error).message}`, error);
  }
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) {
    try {
      bytes = gunzipSync(bytes, { maxOutputLength: fileBytesMax });
    } catch (error) {
      throw refuse(`cannot unpack ${path}: ${(error as Error).message}`, error);
    }
  }
  return bytes.toString("utf8");
}

/** Path of a workload that comes with the product. */
export function namedWorkloadPath(name: (typeof namedWorkloads)[number]): string {
  return fileURLToPath(new URL(`../../simulator/workloads/${name}.jsonl.gz`, import.meta.url));
}

function plainDefaults(workload: Workload): PreparedWorkload {
  return {
    workload,
    defaults: {
      rateFactor: 1,
      workers: 1,
      kvTokensPerWorker: 131_072,
      contextTokensMax: Math.max(1, workloadFacts(workload).contextTokensMax),
    },
  };
}

/**
 * Loads a workload by name (`agentic`, `conversation`) or from a file, plain or gzip: our own prepared
 * format, Mooncake, Qwen-Bailian and other JSONL with `hash_ids`, the agentic stream, or Azure's CSV, told apart by
 * the first line. A file without defaults of its own gets rate factor 1.
 * Throws `invalid_request` that names file, line and field. Blocks while reading (about 0.2 s for the
 * named ones), so call it before anything is served.
 */
export function loadWorkload(
  nameOrPath: string,
  options: WorkloadFileOptions = {},
): PreparedWorkload {
  const named = namedWorkloads.find((name) => name === nameOrPath);
  const path = named === undefined ? nameOrPath : namedWorkloadPath(named);
  if (!existsSync(path)) {
    throw refuse(
      `no workload ${JSON.stringify(nameOrPath)}: it is neither ${namedWorkloads.join(" nor ")} nor a file`,
    );
  }
  const text = readText(path);
  const format = detectFormat(firstLine(text));
  const meta = {
    name: basename(path).replace(/(\.jsonl|\.json|\.csv)?(\.gz)?$/, ""),
    description: `read from ${basename(path)}`,
    licence: "unknown",
    source: path,
  };
  const read = (): PreparedWorkload => {
    switch (format) {
      case "prepared":
        return readPrepared(linesOf(text), path);
      case "agentic": {
        const blockTokens = options.blockTokens ?? 256;
        return plainDefaults(
          readAgenticRows(linesOf(text), { file: path, meta: { ...meta, blockTokens } }),
        );
      }
      case "hash-ids": {
        const blockTokens = options.blockTokens ?? 512;
        return plainDefaults(
          readHashIdRows(linesOf(text), { file: path, meta: { ...meta, blockTokens } }),
        );
      }
      case "bailian": {
        const blockTokens = options.blockTokens ?? 16;
        return plainDefaults(
          readBailianRows(linesOf(text), { file: path, meta: { ...meta, blockTokens } }),
        );
      }
      case "azure": {
        const blockTokens = options.blockTokens ?? 16;
        return plainDefaults(
          readAzureCsv(linesOf(text), { file: path, meta: { ...meta, blockTokens } }),
        );
      }
      case undefined:
        throw refuse(
          `${path}:1: not a workload; known are our own files, JSONL with timestamp, input_length, ` +
            "output_length and hash_ids (or session, keep and runs), and CSV with " +
            "TIMESTAMP,ContextTokens,GeneratedTokens",
        );
    }
  };
  const prepared = read();
  return options.spreadTickMs === undefined
    ? prepared
    : {
        ...prepared,
        workload: spreadTicks(prepared.workload, { seed: 1, tickMs: options.spreadTickMs }),
      };
}
