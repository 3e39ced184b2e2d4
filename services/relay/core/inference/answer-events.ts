import { SseSplitter } from "../guard/sse-splitter.ts";

/** What a stream in the OpenAI shape says, event by event. */
export type AnswerEvent =
  | {
      readonly kind: "tokens";
      readonly ids: readonly number[];
      readonly text: string;
      readonly resumeToken: string;
    }
  | { readonly kind: "finish"; readonly reason: string }
  | {
      readonly kind: "usage";
      readonly promptTokens: number;
      readonly cachedTokens: number;
      readonly completionTokens: number;
    }
  | { readonly kind: "error"; readonly code: string; readonly message: string }
  | { readonly kind: "done" };

interface Chunk {
  readonly choices?: readonly {
    readonly text?: string;
    readonly delta?: { readonly content?: string | null };
    readonly finish_reason?: string | null;
    readonly token_ids?: readonly number[] | null;
  }[];
  readonly usage?: {
    readonly prompt_tokens?: number;
    readonly completion_tokens?: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number } | null;
  } | null;
  readonly error?: { readonly code?: unknown; readonly message?: unknown };
}

const decoder = new TextDecoder();

/** Reads a stream of chunks as it comes. What cannot be read is an error event. */
export class AnswerReader {
  readonly #splitter = new SseSplitter();

  /** The events of a piece, in order. */
  read(piece: Uint8Array): AnswerEvent[] {
    const events: AnswerEvent[] = [];
    const isRead = this.#splitter.read(piece, (bytes, from, to) => {
      readEvent(decoder.decode(bytes.subarray(from, to)), events);
    });
    if (!isRead) events.push(unreadable);
    return events;
  }
}

const unreadable: AnswerEvent = {
  kind: "error",
  code: "worker_lost",
  message: "the engine's stream cannot be read",
};

function readEvent(text: string, events: AnswerEvent[]): void {
  let resumeToken = "";
  let data: string | undefined;
  for (const line of text.split("\n")) {
    if (line.startsWith("id: ")) resumeToken = line.slice(4);
    else if (line.startsWith("data: ")) data = line.slice(6);
  }
  if (data === undefined) return;
  if (data === "[DONE]") {
    events.push({ kind: "done" });
    return;
  }
  let chunk: Chunk;
  try {
    chunk = JSON.parse(data) as Chunk;
  } catch {
    events.push(unreadable);
    return;
  }
  if (chunk.error !== undefined) {
    const { code, message } = chunk.error;
    events.push({
      kind: "error",
      code: typeof code === "string" ? code : "worker_lost",
      message: typeof message === "string" ? message : "the engine failed",
    });
    return;
  }
  for (const choice of chunk.choices ?? []) {
    const piece = choice.text ?? choice.delta?.content ?? "";
    const ids = choice.token_ids ?? [];
    if (piece !== "" || ids.length > 0) {
      events.push({ kind: "tokens", ids, text: piece, resumeToken });
    }
    const reason = choice.finish_reason;
    if (reason !== undefined && reason !== null) events.push({ kind: "finish", reason });
  }
  const { usage } = chunk;
  if (usage === undefined || usage === null) return;
  events.push({
    kind: "usage",
    promptTokens: usage.prompt_tokens ?? 0,
    cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
    completionTokens: usage.completion_tokens ?? 0,
  });
}
