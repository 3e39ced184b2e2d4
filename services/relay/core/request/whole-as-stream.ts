import type { RequestKind } from "../body/relayed-body.ts";

interface WholeChoice {
  readonly index?: number;
  readonly text?: string;
  readonly message?: { readonly role?: string; readonly content?: string | null };
  readonly finish_reason?: string | null;
}

interface WholeAnswer {
  readonly id?: string;
  readonly created?: number;
  readonly model?: string;
  readonly choices?: readonly WholeChoice[];
  readonly usage?: unknown;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/**
 * A whole answer in the form of a stream, for a client that asked for one when the prefill leg already answered all (an
 * end-of-sequence token right after the prompt). One chunk, usage when asked for, `[DONE]`.
 */
export function wholeAsStream(
  kind: RequestKind,
  bytes: Uint8Array,
  withUsage: boolean,
): Uint8Array {
  const whole = JSON.parse(decoder.decode(bytes)) as WholeAnswer;
  const head = {
    id: whole.id ?? "",
    object: kind === "chat" ? "chat.completion.chunk" : "text_completion",
    created: whole.created ?? 0,
    model: whole.model ?? "",
  };
  const choices = (whole.choices ?? []).map(({ index, text, message, finish_reason }) => {
    const content =
      kind === "chat"
        ? { delta: { role: message?.role ?? "assistant", content: message?.content ?? "" } }
        : { text: text ?? "" };
    return { index: index ?? 0, ...content, finish_reason: finish_reason ?? null };
  });
  const chunks: unknown[] = [{ ...head, choices }];
  if (withUsage) chunks.push({ ...head, choices: [], usage: whole.usage ?? null });
  const events = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("");
  return encoder.encode(`${events}data: [DONE]\n\n`);
}
