import { randomUUID } from "node:crypto";

/** An entry of `added_tokens`, as far as it matters here. */
interface AddedToken {
  readonly content: string;
  readonly special?: boolean;
}

/**
 * A `tokenizer.json` (as text) in which control tokens are not recognised: their text is ordinary text.
 * The native package has no switch for that. `modelVocabulary` is the model's own, without added tokens.
 *
 * The package numbers added tokens that the model does not have by their place in the list, whatever
 * the file says, so those cannot be left out: they get a text that nobody can guess.
 */
export function withoutControlTokens(
  file: string,
  modelVocabulary: Readonly<Record<string, number>>,
): string {
  const parsed = JSON.parse(file) as { readonly added_tokens?: readonly AddedToken[] };
  const added = (parsed.added_tokens ?? [])
    .filter(({ content, special }) => special !== true || !Object.hasOwn(modelVocabulary, content))
    .map((token) => (token.special === true ? { ...token, content: randomUUID() } : token));
  return JSON.stringify({ ...parsed, added_tokens: added });
}
