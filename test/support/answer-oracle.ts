import { TokenOracle } from "../../services/simulator/core/engine/token-oracle.ts";
import { loadEngineModel } from "../../services/simulator/edge/engine-process.ts";
import { createPromptTokens } from "../../services/simulator/edge/prompt-tokens.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { specialTokenOf } from "../../services/shared/edge/tokenizer-loader.ts";

/** Says what simulated engines must answer, without asking one. */
export interface AnswerOracle {
  /** Token ids of a plain prompt. */
  encode(text: string): Uint32Array;
  /** Token ids of a chat request. */
  encodeChat(body: Readonly<Record<string, unknown>>): Uint32Array;
  /**
   * The first `count` tokens of the answer to a prompt with seed 0, also past the end token. A token depends on every
   * token of the prompt, so equal answers mean that the engine saw the same prompt.
   */
  answer(prompt: Uint32Array | readonly number[], count: number): number[];
  /** Text of an answer. */
  text(tokens: readonly number[]): string;
}

/** Loads the vocabulary that simulated engines use by default; about a second. */
export async function loadAnswerOracle(): Promise<AnswerOracle> {
  const { tokenizer, files, vocabulary } = await loadEngineModel("");
  const prompts = createPromptTokens(tokenizer, files, realClock);
  const endToken = vocabulary.idOf(specialTokenOf(files.config, "eos_token") ?? "");
  const { words } = vocabulary;
  // The default mean of the engine's settings; with the end ignored it has no influence.
  const oracle = new TokenOracle({ words, endToken, answerTokensMean: 200 });
  return {
    encode: (text) => prompts.encode(text, true),
    encodeChat: (body) => prompts.encodeChat(body),
    answer: (prompt, count) => oracle.answer(Uint32Array.from(prompt), 0, count, true),
    text: (tokens) => vocabulary.decode(tokens.filter((token) => token !== endToken)),
  };
}
