import type { Clock } from "../../shared/core/clock.ts";
import { ChatTemplate } from "../../shared/core/chat-template.ts";
import type { Tokenizer } from "../../shared/core/tokenizer/tokenizer.ts";
import { specialTokenOf, type ModelFiles } from "../../shared/edge/tokenizer-loader.ts";
import type { JsonObject } from "./request-body.ts";
import { badRequest, invalidBody } from "./vllm-error.ts";

/** Turns what a request carries into token ids, as the engine's tokenizer and chat template would. */
export interface PromptTokens {
  /** Ids of a plain prompt; `addSpecial` puts the vocabulary's begin token in front, if it has one. */
  encode(text: string, addSpecial: boolean): Uint32Array;
  /** Ids of a chat request's `messages`, `tools` and template arguments. Throws a 400 for what cannot be rendered. */
  encodeChat(body: JsonObject): Uint32Array;
}

/** Combines a model's tokenizer with its chat template. Throws when the template cannot be parsed. */
export function createPromptTokens(
  tokenizer: Tokenizer,
  files: ModelFiles,
  clock: Clock,
): PromptTokens {
  const prefix = tokenizer.prefixIds;
  const bos = specialTokenOf(files.config, "bos_token");
  const eos = specialTokenOf(files.config, "eos_token");
  const specialTokens = {
    ...(bos === undefined ? {} : { bos }),
    ...(eos === undefined ? {} : { eos }),
  };
  const template =
    files.chatTemplate === undefined
      ? undefined
      : new ChatTemplate(files.chatTemplate, specialTokens);
  return {
    encode(text, addSpecial) {
      const ids = tokenizer.encode(text);
      if (!addSpecial || prefix.length === 0) return ids;
      return Uint32Array.from([...prefix, ...ids]);
    },
    encodeChat(body) {
      if (template === undefined) {
        throw badRequest("the model has no chat template; use /v1/completions", "messages");
      }
      const { messages, tools } = body as { messages?: unknown; tools?: unknown };
      if (!Array.isArray(messages) || messages.length === 0) {
        throw invalidBody(
          "messages",
          "list_type",
          "Input should be a valid list",
          messages ?? null,
        );
      }
      const kwargs = body["chat_template_kwargs"];
      const isObject = typeof kwargs === "object" && kwargs !== null && !Array.isArray(kwargs);
      const text = template.render(messages as readonly unknown[], {
        addGenerationPrompt: body["add_generation_prompt"] !== false,
        continueFinalMessage: body["continue_final_message"] === true,
        wallUnixMs: Math.floor(clock.wallUnixUs() / 1_000),
        ...(Array.isArray(tools) && tools.length > 0 ? { tools } : {}),
        ...(isObject ? { kwargs: kwargs as Readonly<Record<string, unknown>> } : {}),
      });
      return tokenizer.encode(text);
    },
  };
}
