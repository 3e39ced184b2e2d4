import { expect } from "vitest";
import type { OpenAiRequest } from "../../services/router/core/openai/openai-request.ts";
import {
  isScannedText,
  spelled,
  type ScannedChat,
} from "../../services/router/core/openai/scanned-body.ts";

/** A request with its prompt taken out of the body, as the full parser gives it. */
export function taken(request: OpenAiRequest): OpenAiRequest {
  const { prompt } = request;
  switch (prompt.kind) {
    case "scanned_chat":
      checkMessages(prompt.chat);
      return { ...request, prompt: { kind: "chat", chat: prompt.chat.whole() } };
    case "scanned_text":
      return { ...request, prompt: { kind: "text", text: prompt.text.whole() } };
    default:
      return request;
  }
}

/** Holds the messages that a scan found against those of a parser. */
function checkMessages(chat: ScannedChat): void {
  const { bytes } = chat;
  const parsed = chat.whole().messages;
  expect(chat.messages).toHaveLength(parsed.length);
  chat.messages.forEach(({ role, content, more }, i) => {
    const message = parsed[i] ?? {};
    expect(role).toBe(message["role"]);
    const given = message["content"] ?? undefined;
    if (content === undefined) expect(given).toBeUndefined();
    else if (Array.isArray(content)) {
      const texts = (content as readonly Parameters<typeof spelled>[1][]).map((text) =>
        spelled(bytes, text),
      );
      expect((given as { readonly text: string }[]).map((part) => part.text)).toEqual(texts);
    } else expect(given).toBe(spelled(bytes, content as Parameters<typeof spelled>[1]));
    for (const [name, value] of more ?? []) {
      if (isScannedText(value)) expect(message[name]).toBe(spelled(bytes, value));
      else {
        const text = new TextDecoder().decode(bytes.subarray(value.start, value.end));
        expect(message[name]).toEqual(JSON.parse(text));
      }
    }
  });
}
