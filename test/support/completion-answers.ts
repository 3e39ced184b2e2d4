import type { WireAnswer } from "./http-client.ts";

/** Token counts of an answer as the engine states them. */
export interface AnswerUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly prompt_tokens_details?: { readonly cached_tokens: number } | null;
}

/** An answer of either endpoint, streamed or not, asked for with `return_token_ids`. */
export interface CompletionAnswer {
  /** Token ids by choice. */
  readonly tokens: readonly (readonly number[])[];
  /** Text by choice. */
  readonly texts: readonly string[];
  readonly usage: AnswerUsage | undefined;
  /** A stream said `[DONE]`; always true for other answers. */
  readonly done: boolean;
}

interface Part {
  readonly choices?: readonly {
    readonly index: number;
    readonly text?: string;
    readonly delta?: { readonly content?: string };
    readonly message?: { readonly content?: string };
    readonly token_ids?: readonly number[] | null;
  }[];
  readonly usage?: AnswerUsage | null;
}

/** Reads the body of a 200. Throws for anything that is no completion, an incomplete last event included. */
export function readCompletion(body: Buffer, stream: boolean): CompletionAnswer {
  const text = body.toString();
  const events = stream ? text.split("\n\n").filter((event) => event !== "") : [`data: ${text}`];
  const tokens: number[][] = [];
  const texts: string[] = [];
  let usage: AnswerUsage | undefined;
  let done = !stream;
  for (const event of events) {
    const payload = event.replace(/^data: /, "");
    if (payload === "[DONE]") {
      done = true;
      continue;
    }
    const part = JSON.parse(payload) as Part;
    usage = part.usage ?? usage;
    for (const { index, ...choice } of part.choices ?? []) {
      (tokens[index] ??= []).push(...(choice.token_ids ?? []));
      texts[index] =
        (texts[index] ?? "") +
        (choice.text ?? choice.delta?.content ?? choice.message?.content ?? "");
    }
  }
  return { tokens, texts, usage, done };
}

/** The members of an OpenAI error. */
export interface OpenAiErrorBody {
  readonly message: string;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | number | null;
}

/** The error of an answer; throws when its shape is not OpenAI's. */
export function readError(answer: WireAnswer): OpenAiErrorBody {
  const type = answer.headers.get("content-type") ?? "";
  const text = answer.body.toString();
  if (!type.startsWith("application/json")) throw new Error(`${type}: ${text}`);
  const parsed = JSON.parse(text) as { readonly error?: OpenAiErrorBody };
  const keys = Object.keys(parsed.error ?? {}).toSorted();
  if (Object.keys(parsed).join() !== "error" || keys.join() !== "code,message,param,type") {
    throw new Error(`not the OpenAI error shape: ${text}`);
  }
  return parsed.error as OpenAiErrorBody;
}
