import { isObject, refuse, type Body } from "./body-fields.ts";
import type { OpenAiPrompt } from "./openai-prompt.ts";

/** A chat message that is being put together. */
type Message = Record<string, unknown>;

/** Parts of content that are text. */
const textTypes: ReadonlySet<string> = new Set(["input_text", "output_text", "text", "refusal"]);

/**
 * The conversation of a request to the responses API as the chat that vLLM makes of it (`entrypoints/openai/responses`,
 * 0.32): instructions are a system message, calls and reasoning join the assistant's message before them, outputs of
 * calls are tool messages. What refers to conversations that only the engine has, and what is no text, is placed by load.
 */
export function readResponsesInput(body: Body): OpenAiPrompt {
  const { input } = body;
  if (typeof input !== "string" && !Array.isArray(input)) {
    refuse("input", "must be a text or a list of items");
  }
  for (const field of ["previous_response_id", "conversation", "prompt"]) {
    if (body[field] !== undefined && body[field] !== null) {
      return { kind: "load_only", reason: "stored_conversation" };
    }
  }
  const messages: Message[] = [];
  const { instructions } = body;
  if (typeof instructions === "string" && instructions !== "") {
    messages.push({ role: "system", content: instructions });
  }
  if (typeof input === "string") messages.push({ role: "user", content: input });
  else {
    for (const [i, item] of (input as readonly unknown[]).entries()) {
      if (!isObject(item)) refuse(`input[${i}]`, "must be an object");
      const reason = addItem(messages, item);
      if (reason !== undefined) return { kind: "load_only", reason };
    }
  }
  if (messages.length === 0) refuse("input", "must hold at least one item");
  const open = Array.isArray(input) && isOpen(input.at(-1));
  const tools = body["tool_choice"] === "none" ? [] : readTools(body["tools"]);
  if (tools === undefined) return { kind: "load_only", reason: "stored_conversation" };
  return {
    kind: "chat",
    chat: {
      messages,
      tools: tools.length > 0 ? tools : undefined,
      addGenerationPrompt: !open,
      continueFinalMessage: open,
      templateKwargs: isObject(body["chat_template_kwargs"]) ? body["chat_template_kwargs"] : {},
    },
  };
}

/** Whether an item was cut off, so that its message is continued. */
function isOpen(item: unknown): boolean {
  if (!isObject(item)) return false;
  const { status, type = "message" } = item;
  return (
    (type === "message" || type === "reasoning") &&
    (status === "in_progress" || status === "incomplete")
  );
}

/** Adds an item to the messages; says why when it cannot be read as text. */
function addItem(
  messages: Message[],
  item: Body,
): "multimodal" | "stored_conversation" | undefined {
  const last = messages.at(-1);
  const assistant = last?.["role"] === "assistant" ? last : undefined;
  const { type = "message" } = item;
  switch (type) {
    case "message":
      return addMessage(messages, assistant, item);
    case "function_call":
    case "custom_tool_call": {
      const args =
        type === "function_call" ? item["arguments"] : JSON.stringify({ input: item["input"] });
      const call = {
        id: item["call_id"],
        type: "function",
        function: { name: item["name"], arguments: args },
      };
      const calls = assistant?.["tool_calls"];
      if (assistant === undefined) messages.push({ role: "assistant", tool_calls: [call] });
      else assistant["tool_calls"] = [...(Array.isArray(calls) ? (calls as unknown[]) : []), call];
      return undefined;
    }
    case "function_call_output":
    case "custom_tool_call_output": {
      const output = item["output"];
      if (typeof output !== "string") return "multimodal";
      messages.push({ role: "tool", tool_call_id: item["call_id"], content: output });
      return undefined;
    }
    case "reasoning": {
      const reasoning = firstText(item["content"]) ?? firstText(item["summary"]);
      if (item["encrypted_content"] !== undefined && item["encrypted_content"] !== null) {
        return "stored_conversation";
      }
      if (assistant !== undefined && assistant["reasoning"] === undefined) {
        assistant["reasoning"] = reasoning ?? "";
      } else messages.push({ role: "assistant", reasoning: reasoning ?? "" });
      return undefined;
    }
    default:
      // Calls of the engine's own tools, references to items that it has stored.
      return "stored_conversation";
  }
}

function addMessage(
  messages: Message[],
  assistant: Message | undefined,
  item: Body,
): "multimodal" | undefined {
  const { role, content } = item;
  if (typeof role !== "string") refuse("input", "must hold messages with a role");
  if (Array.isArray(content)) {
    const parts = content as readonly unknown[];
    if (!parts.every((part) => isObject(part) && textTypes.has(String(part["type"])))) {
      return "multimodal";
    }
  } else if (typeof content !== "string") return "multimodal";
  if (role !== "assistant") {
    messages.push({ role, content });
    return undefined;
  }
  const text = typeof content === "string" ? content : firstText(content);
  if (text === undefined) return undefined;
  if (assistant !== undefined && assistant["content"] === undefined) assistant["content"] = text;
  else messages.push({ role, content: text });
  return undefined;
}

/** Text of the first part of a list. */
function firstText(parts: unknown): string | undefined {
  if (!Array.isArray(parts)) return undefined;
  const [first] = parts as readonly unknown[];
  if (!isObject(first)) return undefined;
  const text = first["text"] ?? first["refusal"];
  return typeof text === "string" ? text : undefined;
}

/** Functions in the shape that chats have them; the engine's own tools are none. `undefined` when they cannot be told. */
function readTools(tools: unknown): readonly unknown[] | undefined {
  if (!Array.isArray(tools)) return [];
  const found: unknown[] = [];
  for (const tool of tools as readonly unknown[]) {
    if (!isObject(tool) || tool["type"] === "namespace" || tool["type"] === "custom") {
      return undefined;
    }
    if (tool["type"] !== "function") continue;
    const { type, ...definition } = tool;
    found.push({ type, function: definition });
  }
  return found;
}
