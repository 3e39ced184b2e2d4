import { describe, expect, test } from "vitest";
import { hashBlocks, hashRoot, type HashRoot } from "../../../shared/core/block-hash.ts";
import { PromptChain } from "./prompt-chain.ts";
import { LiteralText } from "./rendered-parts.ts";
import { TokenRing } from "./token-ring.ts";

const root = hashRoot(new Uint8Array(32), { model: "m" });
type Part = LiteralText | string;
const token = new LiteralText("<a>", ["", ""], [7]);

function chainOf(bytesMax: number) {
  let encoded = 0;
  const tokenizer = {
    encode: (text: string | Uint8Array) => {
      encoded += text.length;
      return Uint32Array.from(String(text), (c) => c.charCodeAt(0));
    },
  };
  const chain = new PromptChain(tokenizer, { bytesMax, tokens: new TokenRing(1_000) });
  /** A prompt without texts of a request, or one in which each part is a step of its own. */
  const read = (parts: readonly Part[], of: HashRoot, blockSizeTokens: number, apart = false) => {
    const between = apart ? parts.map((part) => [part]) : [parts];
    const links = between.map((some) => ({ text: -1, connector: chain.connector(some) }));
    return chain.read(links, [], { root: of, blockSizeTokens, bind: () => undefined });
  };
  return { read, encoded: () => encoded };
}

const ids = (parts: readonly Part[]): number[] =>
  parts.flatMap((part) =>
    part === token ? [7] : Array.from(part as string, (c) => c.charCodeAt(0)),
  );

describe("chains of prompts given as parts", () => {
  test("are those of all tokens in a row, for every beginning and block size", () => {
    const { read } = chainOf(1 << 20);
    const parts: readonly Part[] = ["ab", token, "cde", token, token, "fghij", token, "k"];
    for (const blockSizeTokens of [1, 2, 3, 16]) {
      for (const length of [8, 3, 5, 0, 8, 1, 2]) {
        const apart = length % 2 === 0;
        const prompt = parts.slice(0, length);
        const all = ids(prompt);
        expect(read(prompt, root, blockSizeTokens, apart)).toEqual({
          tokens: all.length,
          hashes: hashBlocks(root, all, blockSizeTokens),
        });
      }
    }
  });

  test("of another root have other hashes", () => {
    const { read } = chainOf(1 << 20);
    const other = hashRoot(new Uint8Array(32), { model: "n" });
    expect(read(["abcd"], root, 2).hashes).not.toEqual(read(["abcd"], other, 2).hashes);
    expect(read(["abcd"], root, 2).hashes).toEqual(hashBlocks(root, ids(["abcd"]), 2));
  });

  test("stay right when memory is short", () => {
    const { read } = chainOf(2_000);
    for (let n = 0; n < 500; n++) {
      const prompt: Part[] = [`${n % 50}`, token, `${n}`, token];
      expect(read(prompt, root, 2).hashes).toEqual(hashBlocks(root, ids(prompt), 2));
    }
  });
});
