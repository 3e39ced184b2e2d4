import { MeshError } from "./errors.ts";

/**
 * How a chat template wants the content of a message: one string, or a list of parts. Engines look at
 * the template to decide (vLLM `--chat-template-content-format auto`).
 */
export type ContentFormat = "string" | "parts";

type JsonObject = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The messages as vLLM hands them to a template (`entrypoints/chat_utils.py`): role, content brought to
 * the template's format, and of the rest only tool calls, reasoning, tool call id and name. Text parts
 * are joined by a line end; absent content is empty; JSON text of tool call arguments is parsed.
 *
 * Throws `invalid_request` naming the field for what a text model cannot take.
 */
export function normaliseMessages(
  messages: readonly unknown[],
  format: ContentFormat,
): Record<string, unknown>[] {
  return messages.map((message, index) =>
    normaliseMessage(message, format, `messages[${String(index)}]`),
  );
}

function normaliseMessage(
  message: unknown,
  format: ContentFormat,
  field: string,
): Record<string, unknown> {
  if (!isObject(message)) throw invalid(field, "is not an object");
  const role = message["role"];
  if (typeof role !== "string") throw invalid(`${field}.role`, "is not a string");
  const texts = textsOf(message["content"], `${field}.content`);
  const result: Record<string, unknown> = { role };
  // Tool results are text for every template.
  if (format === "string" || role === "tool") result["content"] = texts.join("\n");
  else result["content"] = texts.map((text) => ({ type: "text", text }));
  if (role === "assistant") {
    const calls = message["tool_calls"];
    if (Array.isArray(calls) && calls.length > 0) {
      result["tool_calls"] = calls.map((call) => normaliseToolCall(call));
    }
    // Engines took the second name for the same thing before the first.
    const reasoning = message["reasoning"] ?? message["reasoning_content"];
    if (typeof reasoning === "string") {
      result["reasoning"] = reasoning;
      result["reasoning_content"] = reasoning;
    }
  }
  if (role === "tool" && "tool_call_id" in message)
    result["tool_call_id"] = message["tool_call_id"];
  if (typeof message["name"] === "string") result["name"] = message["name"];
  if (role === "developer") result["tools"] = message["tools"] ?? null;
  return result;
}

/** Fields that carry the text of a content part, by its type. */
const textFieldByPartType: Readonly<Record<string, string>> = {
  text: "text",
  input_text: "text",
  output_text: "text",
  refusal: "refusal",
  thinking: "thinking",
};

function textsOf(content: unknown, field: string): string[] {
  if (content === null || content === undefined) return [];
  if (typeof content === "string") return [content];
  if (!Array.isArray(content)) throw invalid(field, "is neither a string nor a list of parts");
  const texts: string[] = [];
  content.forEach((part: unknown, index) => {
    const partField = `${field}[${String(index)}]`;
    if (typeof part === "string") {
      texts.push(part);
      return;
    }
    if (!isObject(part)) throw invalid(partField, "is neither a string nor a part");
    const type = part["type"];
    const textField = typeof type === "string" ? textFieldByPartType[type] : undefined;
    if (textField === undefined) {
      throw invalid(
        `${partField}.type`,
        `${type === undefined ? "is absent" : `${JSON.stringify(type)} is not supported`}; a text model takes text parts`,
      );
    }
    const text = part[textField];
    if (typeof text === "string") texts.push(text);
    else if (text !== null && text !== undefined) {
      throw invalid(`${partField}.${textField}`, "is not a string");
    }
  });
  return texts;
}

/** A tool call with its arguments as an object. */
export function normaliseToolCall(call: unknown): unknown {
  if (!isObject(call) || !isObject(call["function"])) return call;
  return { ...call, function: { ...call["function"], arguments: argumentsOf(call["function"]) } };
}

/** Templates expect arguments as an object; text that is not JSON counts as no arguments. */
function argumentsOf(call: JsonObject): unknown {
  const value = call["arguments"];
  if (typeof value === "string") {
    try {
      return JSON.parse(value) as unknown;
    } catch {
      return {};
    }
  }
  return typeof value === "object" && value !== null ? value : {};
}

/**
 * Tool definitions as vLLM writes them into a prompt: `type`, then `function` with name, description
 * and parameters in this order (null where absent), then whatever else was given.
 */
export function normaliseTools(tools: unknown): unknown {
  if (tools === undefined || tools === null) return undefined;
  if (!Array.isArray(tools)) throw invalid("tools", "is not a list");
  return tools.map((tool: unknown, index) => {
    const field = `tools[${String(index)}]`;
    if (!isObject(tool)) throw invalid(field, "is not an object");
    const { type = "function", function: definition, ...more } = tool;
    if (!isObject(definition)) throw invalid(`${field}.function`, "is not an object");
    const { name, description = null, parameters = null, ...rest } = definition;
    return { type, function: { name, description, parameters, ...rest }, ...more };
  });
}

function invalid(field: string, problem: string): MeshError {
  return new MeshError("invalid_request", `${field} ${problem}`, { field });
}
