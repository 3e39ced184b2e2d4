import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { editObject } from "./edit-object.ts";
import { readBody } from "./relayed-body.ts";
import { reservedFields } from "../../../shared/core/reserved-fields.ts";
import { scanDocument } from "./scanned-object.ts";

const json = new JsonScanner(new Int32Array(8), 0);
const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const value = fc.jsonValue({ maxDepth: 3 });
const space = fc.constantFrom("", " ", "\n\t", "  ");

/** An object as text, with white space anywhere and names spelled with escapes here and there. */
const spelled = fc
  .array(fc.tuple(fc.string({ unit: "grapheme", maxLength: 6 }), value, space, fc.boolean()), {
    maxLength: 6,
  })
  .map((fields) => {
    const parts = fields.map(([name, one, gap, escapes]) => {
      const key = escapes
        ? `"${name.replace(/[^]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`)}"`
        : JSON.stringify(name);
      return `${gap}${key}${gap}:${gap}${JSON.stringify(one)}${gap}`;
    });
    return `{${parts.join(",")}}`;
  });

describe("body", () => {
  test("edits set fields and leave every other byte", () => {
    fc.assert(
      fc.property(
        spelled,
        fc.array(fc.tuple(fc.string({ maxLength: 3 }), value), { maxLength: 3 }),
        space,
        (text, sets, gap) => {
          const object = scanDocument(json, encode(`${gap}${text}${gap}`));
          if (object === undefined) throw new Error(`not read: ${text}`);
          const names = new Map(sets);
          const edits = [...names].map(([name, one]) => ({ name, json: JSON.stringify(one) }));
          const edited = decode(editObject(object, edits));
          const before = JSON.parse(text) as Record<string, unknown>;
          const expected = new Map(Object.entries(before));
          for (const [name, one] of names) expected.set(name, one);
          const after = new Map(Object.entries(JSON.parse(edited) as Record<string, unknown>));
          expected.delete("__proto__");
          after.delete("__proto__");
          expect(after).toEqual(
            new Map([...expected].map(([k, v]) => [k, JSON.parse(JSON.stringify(v)) as unknown])),
          );
          if (edits.length === 0) expect(edited).toBe(text);
          // Nobody who reads the first of two equal names gets another value than who reads the last.
          for (const { name, json: set } of edits) {
            const again = scanDocument(json, encode(edited));
            const found = again?.fields.filter((field) => field.name === name) ?? [];
            expect(found.map((field) => again?.text(field))).toEqual(found.map(() => set));
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  test("what is no JSON object is not read", () => {
    fc.assert(
      fc.property(spelled, fc.nat(), (text, at) => {
        const cut = text.slice(0, at % text.length);
        expect(scanDocument(json, encode(cut))).toBeUndefined();
        expect(scanDocument(json, encode(`${text}x`))).toBeUndefined();
      }),
    );
  });

  test("reserved fields are refused, however they are spelled", () => {
    const facts = { kind: "completion", salted: false } as const;
    for (const name of reservedFields) {
      const escaped = `\\u${name.charCodeAt(0).toString(16).padStart(4, "0")}${name.slice(1)}`;
      for (const key of [name, escaped]) {
        expect(() => readBody(json, encode(`{"a":{},"${key}" : null}`), facts)).toThrow(name);
      }
      // Inside a value it is content.
      readBody(json, encode(`{"prompt":"x","metadata":{"${name}":1}}`), facts);
    }
  });
});
