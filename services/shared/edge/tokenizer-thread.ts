import { Worker } from "node:worker_threads";
import { MeshError } from "../core/errors.ts";

/** One text to encode. */
export interface EncodeOrder {
  readonly id: number;
  /** UTF-8; malformed bytes read as U+FFFD. */
  readonly text: Uint8Array<ArrayBuffer>;
  /** Whether control tokens in the text are recognised. */
  readonly special: boolean;
}

/** What a tokenizer thread says: once `ready` or `refused`, then one `encoded` or `failed` for each order. */
export type TokenizerThreadMessage =
  | { readonly kind: "ready"; readonly prefixIds: readonly number[] }
  | { readonly kind: "refused"; readonly message: string }
  | { readonly kind: "encoded"; readonly id: number; readonly ids: Uint32Array<ArrayBuffer> }
  | { readonly kind: "failed"; readonly id: number; readonly message: string };

/** What a tokenizer thread runs. */
export interface TokenizerThreadBody {
  /** Module of the thread: it posts `TokenizerThreadMessage` and takes `EncodeOrder`. */
  readonly module: URL;
  /** What the thread is given, each time it is started. */
  readonly job: unknown;
  readonly name: string;
}

/** Text to token ids, later. */
export interface LaterTokenizer {
  /** Ids that the vocabulary's post-processor puts before a plain prompt; `encodeLater` does not. */
  readonly prefixIds: readonly number[];
  /**
   * Token ids of `text` (a string, or its UTF-8 bytes), as `Tokenizer.encode` gives them. Rejects with
   * `overloaded` when the queue is full, `request_too_large` for a text above the limit,
   * `deadline_exceeded`, `cancelled`, `invalid_request` for what the vocabulary refuses, `worker_lost`
   * when the thread died.
   */
  encodeLater(text: string | Uint8Array, options?: EncodeLaterOptions): Promise<Uint32Array>;
  /** Ends the thread; what waits is cancelled. */
  close(): Promise<void>;
}

/** Options of one `encodeLater` call. */
export interface EncodeLaterOptions {
  /** Whether control tokens in the text are recognised; default true. */
  readonly special?: boolean;
  /** Longest wait for the ids, queueing included, ms; default and maximum as the tokenizer has it. */
  readonly deadlineMs?: number;
  readonly signal?: AbortSignal;
}

/** Limits of a `TokenizerThread`. */
export interface TokenizerThreadLimits {
  /** Texts that may wait; default 64. */
  readonly queueMax: number;
  /** Bytes of texts that may wait, the one being encoded included; default 16 MiB. */
  readonly queueBytesMax: number;
  /** Longest text, bytes; default 4 MiB, two seconds of work. */
  readonly textBytesMax: number;
  /** Longest wait, ms; default 2 000. */
  readonly deadlineMs: number;
  /** Time after which a thread that works on one text is ended and started anew, ms; default 15 000. */
  readonly stuckMs: number;
}

const defaultLimits: TokenizerThreadLimits = {
  queueMax: 64,
  queueBytesMax: 16 << 20,
  textBytesMax: 4 << 20,
  deadlineMs: 2_000,
  stuckMs: 15_000,
};

/** Longest the package may take to read a file, ms; about 0.5 s of CPU is normal. */
const openMsMax = 60_000;

/** Counts since the start, for metrics. */
export interface TokenizerThreadCounts {
  encoded: number;
  /** Refused because the queue was full. */
  overloaded: number;
  deadlineExceeded: number;
  /** Threads that died or were ended because they were stuck. */
  threadsLost: number;
}

interface Waiting {
  readonly text: Uint8Array<ArrayBuffer>;
  readonly bytes: number;
  readonly special: boolean;
  readonly resolve: (ids: Uint32Array) => void;
  readonly reject: (error: MeshError) => void;
  settled: boolean;
}

/**
 * A tokenizer in one thread of its own, so that the event loop never encodes; the thread starts with the first text. Texts
 * wait in a queue bounded by count and bytes; one is with the thread at a time, so one whose deadline has passed costs
 * nothing.
 */
export class TokenizerThread implements LaterTokenizer {
  readonly counts: TokenizerThreadCounts = {
    encoded: 0,
    overloaded: 0,
    deadlineExceeded: 0,
    threadsLost: 0,
  };
  prefixIds: readonly number[] = [];
  readonly #body: TokenizerThreadBody;
  readonly #limits: TokenizerThreadLimits;
  readonly #encoder = new TextEncoder();
  readonly #queue: Waiting[] = [];
  #queuedBytes = 0;
  #worker: Worker | undefined;
  #ready = false;
  #running: Waiting | undefined;
  #runningId = 0;
  #stuck: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(body: TokenizerThreadBody, limits: Partial<TokenizerThreadLimits> = {}) {
    this.#body = body;
    this.#limits = { ...defaultLimits, ...limits };
  }

  /**
   * Starts the thread and waits until it can encode. Rejects with `invalid_request` when it cannot read its file,
   * `cancelled` when `signal` aborts, `deadline_exceeded` after 60 s; it is closed then.
   */
  async start(signal?: AbortSignal): Promise<void> {
    try {
      const { promise, resolve, reject } = Promise.withResolvers<undefined>();
      const cancel = (): void => {
        reject(new MeshError("cancelled", "opening the tokenizer was cancelled"));
      };
      const timer = setTimeout(() => {
        const message = `opening the tokenizer took longer than ${String(openMsMax)} ms`;
        reject(new MeshError("deadline_exceeded", message));
      }, openMsMax);
      signal?.addEventListener("abort", cancel, { once: true });
      if (signal?.aborted === true) cancel();
      else this.#start(resolve, reject);
      await promise.finally(() => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", cancel);
      });
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  /** Texts that wait, the one being encoded included. */
  get queued(): number {
    return this.#queue.length + (this.#running === undefined ? 0 : 1);
  }

  /** Bytes of the texts that wait, the one being encoded included. */
  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  async encodeLater(
    text: string | Uint8Array,
    options: EncodeLaterOptions = {},
  ): Promise<Uint32Array> {
    const { queueMax, queueBytesMax, textBytesMax } = this.#limits;
    if (this.#closed) throw new MeshError("cancelled", "the tokenizer is closed");
    if (options.signal?.aborted === true) throw cancelled(options.signal);
    // A copy: the thread takes it over, and the caller's may lie in a buffer that is used again.
    const bytes = typeof text === "string" ? this.#encoder.encode(text) : new Uint8Array(text);
    if (bytes.length > textBytesMax) {
      throw new MeshError(
        "request_too_large",
        `a text of ${String(bytes.length)} bytes is above the tokenizer's limit of ${String(textBytesMax)}`,
      );
    }
    if (this.#queue.length >= queueMax || this.#queuedBytes + bytes.length > queueBytesMax) {
      this.counts.overloaded++;
      throw new MeshError(
        "overloaded",
        `${String(this.#queue.length)} texts of ${String(this.#queuedBytes)} bytes wait for the tokenizer`,
      );
    }
    return this.#enqueue(bytes, options);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#stuck);
    const error = new MeshError("cancelled", "the tokenizer was closed");
    this.#running?.reject(error);
    for (const waiting of this.#queue.splice(0)) waiting.reject(error);
    this.#running = undefined;
    this.#queuedBytes = 0;
    await this.#worker?.terminate();
  }

  #enqueue(text: Uint8Array<ArrayBuffer>, options: EncodeLaterOptions): Promise<Uint32Array> {
    const { signal } = options;
    const deadlineMs = Math.min(options.deadlineMs ?? Infinity, this.#limits.deadlineMs);
    const { promise, resolve, reject } = Promise.withResolvers<Uint32Array>();
    const special = options.special !== false;
    const bytes = text.length;
    const waiting: Waiting = { text, bytes, special, resolve, reject, settled: false };
    this.#queue.push(waiting);
    this.#queuedBytes += bytes;
    const giveUp = (error: MeshError): void => {
      waiting.settled = true;
      const at = this.#queue.indexOf(waiting);
      // One that the thread has is still work under way, so it counts until that ends.
      if (at >= 0) {
        this.#queue.splice(at, 1);
        this.#queuedBytes -= bytes;
      }
      reject(error);
    };
    const timer = setTimeout(() => {
      this.counts.deadlineExceeded++;
      giveUp(new MeshError("deadline_exceeded", `no token ids within ${String(deadlineMs)} ms`));
    }, deadlineMs);
    const cancel = (): void => {
      giveUp(cancelled(signal));
    };
    signal?.addEventListener("abort", cancel, { once: true });
    this.#next();
    return promise.finally(() => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", cancel);
    });
  }

  /** Gives the thread its next text; starts it when it died. */
  #next(): void {
    if (this.#closed || this.#running !== undefined || this.#queue.length === 0) return;
    if (this.#worker === undefined) this.#start(undefined, undefined);
    if (!this.#ready) return;
    const waiting = this.#queue.shift();
    if (waiting === undefined) return;
    this.#running = waiting;
    const { text, special } = waiting;
    const order: EncodeOrder = { id: ++this.#runningId, text, special };
    this.#stuck = setTimeout(() => {
      // Ending a thread waits for the native code that it runs, so the next thread does not wait for that.
      void this.#worker?.terminate();
      const limit = `${String(this.#limits.stuckMs)} ms`;
      this.#lose(new MeshError("worker_lost", `encoding one text took longer than ${limit}`));
    }, this.#limits.stuckMs);
    this.#stuck.unref();
    this.#worker?.postMessage(order, [text.buffer]);
  }

  #start(
    onReady: ((value: undefined) => void) | undefined,
    onRefused: ((error: MeshError) => void) | undefined,
  ): void {
    const { module, job, name } = this.#body;
    const worker = new Worker(module, { workerData: job, name });
    worker.unref();
    this.#worker = worker;
    let refusal = "the tokenizer thread ended";
    worker.on("message", (message: TokenizerThreadMessage) => {
      if (this.#worker !== worker) return;
      if (message.kind === "ready") {
        this.#ready = true;
        this.prefixIds = message.prefixIds;
        onReady?.(undefined);
      } else if (message.kind === "refused") {
        refusal = message.message;
        onRefused?.(new MeshError("invalid_request", refusal, { field: "tokenizer.json" }));
        void worker.terminate();
      } else this.#finish(message);
      this.#next();
    });
    worker.on("error", (error: unknown) => {
      refusal = error instanceof Error ? error.message : String(error);
    });
    worker.on("exit", () => {
      if (this.#worker === worker) this.#lose(new MeshError("worker_lost", refusal));
      onRefused?.(new MeshError("worker_lost", refusal));
    });
  }

  #finish(message: Extract<TokenizerThreadMessage, { readonly id: number }>): void {
    const waiting = this.#running;
    if (waiting === undefined || message.id !== this.#runningId) return;
    this.#running = undefined;
    clearTimeout(this.#stuck);
    this.#queuedBytes -= waiting.bytes;
    if (message.kind === "failed") {
      waiting.reject(new MeshError("invalid_request", `tokenizer: ${message.message}`));
      return;
    }
    if (!waiting.settled) this.counts.encoded++;
    waiting.resolve(message.ids);
  }

  /** The thread is gone: the text it had is lost with it, those that wait get a new thread. */
  #lose(error: MeshError): void {
    this.#worker = undefined;
    this.#ready = false;
    clearTimeout(this.#stuck);
    if (this.#closed) return;
    this.counts.threadsLost++;
    const waiting = this.#running;
    this.#running = undefined;
    if (waiting === undefined) {
      // It died without work, so a new one would die again: nobody waits for it.
      for (const one of this.#queue.splice(0)) one.reject(error);
      this.#queuedBytes = 0;
      return;
    }
    this.#queuedBytes -= waiting.bytes;
    waiting.reject(error);
    this.#next();
  }
}

function cancelled(signal: AbortSignal | undefined): MeshError {
  return new MeshError("cancelled", "encoding was cancelled", { cause: signal?.reason });
}
