import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MeshError } from "../../../shared/core/errors.ts";
import { readOpenAiRequest } from "./openai-request.ts";

const path = "/v1/completions";

function outcome(json: string): string {
  try {
    readOpenAiRequest(path, new TextEncoder().encode(json));
    return "read";
  } catch (error) {
    if (!(error instanceof MeshError)) throw error;
    return error.message;
  }
}

const body = (prompt: string, extra: string): string =>
  `{"model":"m","prompt":${JSON.stringify(prompt)},"extra":${extra}}`;
const nested = (levels: number): string => "[".repeat(levels) + "]".repeat(levels);

describe("nesting of a body", () => {
  test("is allowed to 64 levels, the body itself being the first", () => {
    expect(outcome(body("p", nested(63)))).toBe("read");
    expect(outcome(body("p", nested(64)))).toBe("the body nests deeper than 64 levels");
  });

  test("is not counted within strings, whatever quotes and backslashes they hold", () => {
    const pieces = fc.constantFrom('"', "\\", '\\"', "[", "{", "]", "}", "n", "\n", "é", "日");
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 200 }), (parts) => {
        const prompt = `${parts.join("")}${"[".repeat(100)}`;
        expect(outcome(body(prompt, nested(63)))).toBe("read");
        expect(outcome(body(prompt, nested(64)))).toBe("the body nests deeper than 64 levels");
      }),
    );
  });

  test("of a body whose last string never ends is left to the parser", () => {
    expect(outcome('{"model":"m","prompt":"\\"')).toContain("the body is not valid JSON");
    expect(outcome('"')).toContain("the body is not valid JSON");
  });
});
