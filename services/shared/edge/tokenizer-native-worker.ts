/** Thread body of `NativeTokenizer`: encodes posted texts one after another with the `tokenizers` package. */
import { parentPort, workerData } from "node:worker_threads";
import type { Tokenizer } from "tokenizers";
import { withoutControlTokens } from "./tokenizer-control-tokens.ts";
import type { EncodeOrder, TokenizerThreadMessage } from "./tokenizer-thread.ts";

/** What the thread is given. */
export interface NativeTokenizerJob {
  /** Bytes of tokenizer.json in shared memory, so that a thread started anew copies nothing. */
  readonly json: Uint8Array<SharedArrayBuffer>;
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

function post(message: TokenizerThreadMessage, transfer: ArrayBuffer[] = []): void {
  parentPort?.postMessage(message, transfer);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function idsOf(
  tokenizer: Tokenizer,
  text: string,
  addSpecialTokens: boolean,
): Promise<number[]> {
  return (await tokenizer.encode(text, null, { addSpecialTokens })).getIds();
}

async function run(job: NativeTokenizerJob): Promise<void> {
  // Decoders refuse shared memory; this copy is on the thread's time.
  const file = decoder.decode(new Uint8Array(job.json));
  let tokenizer: Tokenizer;
  let ordinary: Tokenizer;
  let prefixIds: number[];
  try {
    const native = await import("tokenizers");
    const open = (json: string): Tokenizer => {
      const opened = native.Tokenizer.fromString(json);
      // A file may carry both; engines encode prompts without.
      opened.disableTruncation();
      opened.disablePadding();
      return opened;
    };
    tokenizer = open(file);
    ordinary = open(withoutControlTokens(file, tokenizer.getVocab(false)));
    const plain = await idsOf(tokenizer, "a", false);
    const whole = await idsOf(tokenizer, "a", true);
    prefixIds = whole.slice(0, Math.max(0, whole.indexOf(plain[0] ?? -1)));
  } catch (error) {
    const message = `the native package cannot read tokenizer.json: ${messageOf(error)}`;
    post({ kind: "refused", message });
    return;
  }
  parentPort?.on("message", (order: EncodeOrder) => {
    const chosen = order.special ? tokenizer : ordinary;
    idsOf(chosen, decoder.decode(order.text), false).then(
      (ids) => {
        const array = Uint32Array.from(ids);
        post({ kind: "encoded", id: order.id, ids: array }, [array.buffer]);
      },
      (error: unknown) => {
        post({ kind: "failed", id: order.id, message: messageOf(error) });
      },
    );
  });
  post({ kind: "ready", prefixIds });
}

await run(workerData as NativeTokenizerJob);
