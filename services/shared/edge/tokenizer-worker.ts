/** Thread body of `loadTokenizer`: builds tokenizer tables from posted bytes and hands them over. */
import { parentPort, workerData } from "node:worker_threads";
import { MeshError } from "../core/errors.ts";
import { parseTokenizerJson } from "../core/tokenizer/tokenizer-json.ts";
import { tableBuffers, type TokenizerTables } from "../core/tokenizer/tables.ts";
import { buildWithCache } from "./tokenizer-cache.ts";

/** What the thread is given. */
export interface TokenizerJob {
  /** Bytes of tokenizer.json in shared memory, so that starting the thread copies nothing. */
  readonly json: Uint8Array<SharedArrayBuffer>;
  readonly hashKey: Int32Array<ArrayBuffer>;
  /** Folder of tables built before; empty for none. */
  readonly cacheFolder: string;
}

/** What it answers, once. Bad input crosses as plain values: error classes do not survive the copy. */
export type TokenizerJobResult =
  | { readonly kind: "built"; readonly tables: TokenizerTables }
  | { readonly kind: "refused"; readonly message: string; readonly field: string | undefined };

function run(job: TokenizerJob): void {
  try {
    // Decoders refuse shared memory; this copy is on the thread's time.
    const json = new Uint8Array(job.json);
    const tables = buildWithCache(json, job.cacheFolder, () =>
      parseTokenizerJson(json, { hashKey: job.hashKey }),
    );
    const result: TokenizerJobResult = { kind: "built", tables };
    parentPort?.postMessage(result, tableBuffers(tables));
  } catch (error) {
    // Anything else is a bug: the thread dies and `loadTokenizer` rejects with what killed it.
    if (!(error instanceof MeshError) || error.code !== "invalid_request") throw error;
    const { message, field } = error;
    parentPort?.postMessage({ kind: "refused", message, field } satisfies TokenizerJobResult);
  }
}

run(workerData as TokenizerJob);
