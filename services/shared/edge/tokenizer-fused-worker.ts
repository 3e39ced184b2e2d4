/** Thread body of `fusedThread`: encodes posted texts one after another with the project's own tokenizer. */
import { parentPort, workerData } from "node:worker_threads";
import { FusedBpe } from "../core/tokenizer/fused-bpe.ts";
import { parseTokenizerJson } from "../core/tokenizer/tokenizer-json.ts";
import { buildWithCache } from "./tokenizer-cache.ts";
import type { EncodeOrder, TokenizerThreadMessage } from "./tokenizer-thread.ts";
import type { TokenizerJob } from "./tokenizer-worker.ts";

function post(message: TokenizerThreadMessage, transfer: ArrayBuffer[] = []): void {
  parentPort?.postMessage(message, transfer);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function open(job: TokenizerJob): FusedBpe {
  // Decoders refuse shared memory; this copy is on the thread's time.
  const json = new Uint8Array(job.json);
  const { hashKey, cacheFolder } = job;
  return new FusedBpe(
    buildWithCache(json, cacheFolder, () => parseTokenizerJson(json, { hashKey })),
  );
}

function run(job: TokenizerJob): void {
  let tokenizer: FusedBpe;
  try {
    tokenizer = open(job);
  } catch (error) {
    post({ kind: "refused", message: messageOf(error) });
    return;
  }
  parentPort?.on("message", ({ id, text, special }: EncodeOrder) => {
    try {
      const ids = tokenizer.encode(text, { special }) as Uint32Array<ArrayBuffer>;
      post({ kind: "encoded", id, ids }, [ids.buffer]);
    } catch (error) {
      post({ kind: "failed", id, message: messageOf(error) });
    }
  });
  post({ kind: "ready", prefixIds: tokenizer.prefixIds });
}

run(workerData as TokenizerJob);
