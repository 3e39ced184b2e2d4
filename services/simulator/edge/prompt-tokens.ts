import { Template } from "@huggingface/jinja";
import {
  loadTokenizer,
  specialTokenOf,
  type ModelFiles,
} from "../../shared/edge/tokenizer-loader.ts";
import type { JsonObject } from "./request-body.ts";
import { badRequest, invalidBody, VllmError } from "./vllm-error.ts";

/** Turns what a request carries into token ids, as the engine's tokenizer and chat template would. */
export interface PromptTokens {
  /** Ids of a plain prompt; `addSpecial` puts the vocabulary's begin token in front, if it has one. */
  encode(text: string, addSpecial: boolean): Uint32Array;
  /** Ids of a chat request's `messages`, `tools` and template arguments. Throws a 400 for what cannot be rendered. */
  encodeChat(body: JsonObject): Uint32Array;
}

/** Combines a model's tokenizer with its chat template. */
export function createPromptTokens(tokenizer: Tokenizer, files: ModelFiles): PromptTokens {
  const prefix = tokenizer.prefixIds;
  const template = files.chatTemplate === undefined ? undefined : new Template(files.chatTemplate);
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
      if (!Array.isArray(messages)) {
        throw invalidBody(
          "messages",
          "list_type",
          "Input should be a valid list",
          messages ?? null,
        );
      }
      const kwargs = body["chat_template_kwargs"];
      try {
        const text = template.render({
          messages,
          tools: Array.isArray(tools) && tools.length > 0 ? tools : null,
          add_generation_prompt: body["add_generation_prompt"] !== false,
          bos_token: specialTokenOf(files.config, "bos_token") ?? "",
          eos_token: specialTokenOf(files.config, "eos_token") ?? "",
          ...(typeof kwargs === "object" && kwargs !== null ? kwargs : {}),
        });
        return tokenizer.encode(text);
      } catch (error) {
        if (error instanceof VllmError) throw error;
        throw badRequest(`cannot apply the chat template: ${(error as Error).message}`, "messages");
      }
    },
  };
}
