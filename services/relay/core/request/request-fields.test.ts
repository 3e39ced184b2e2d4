import { describe, expect, test } from "vitest";
import { findUnsendable, type HeaderField } from "./forwarded-headers.ts";
import { placeFields } from "./place-fields.ts";

describe("what cannot be sent on to an engine", () => {
  test.each<[string, string, HeaderField[], RegExp | undefined]>([
    ["an ordinary request", "/v1/completions?a=%20b", [["x-a", "tab\tand é"]], undefined],
    ["a path with a blank", "/v1/completions?a= b", [], /path/],
    ["a path beyond Latin-1", "/v1/completions?a=漢", [], /path/],
    ["a value beyond Latin-1", "/v1/completions", [["x-a", "漢"]], /header x-a/],
    ["a value with a line's end", "/v1/completions", [["x-a", "1\r\nx-b: 2"]], /header x-a/],
    ["a name that is no token", "/v1/completions", [["x a", "1"]], /name/],
    ["a field that stays here", "/v1/completions", [["x-kvmesh-tenant", "漢"]], undefined],
  ])("%s", (_name, path, fields, problem) => {
    const found = findUnsendable(path, fields);
    if (problem === undefined) expect(found).toBeUndefined();
    else expect(found).toMatch(problem);
  });
});

describe("what a router is told beside the body", () => {
  const headers: Readonly<Record<string, string>> = {
    "x-kvmesh-priority": "high",
    "x-slo-ttft-ms": "200",
    "x-kvmesh-slo-itl-ms": "15",
    "x-session-id": "漢",
    authorization: "Bearer secret",
  };

  test("tenant, class, targets and trace, and nothing else of the caller's", () => {
    const fields = placeFields({
      tenant: "acme",
      traceparent: "00-a-b-01",
      header: (name) => headers[name],
    });
    expect(fields).toEqual([
      ["x-kvmesh-tenant", "acme"],
      ["x-kvmesh-priority", "high"],
      ["x-slo-ttft-ms", "200"],
      ["x-kvmesh-slo-itl-ms", "15"],
      ["traceparent", "00-a-b-01"],
    ]);
  });

  test("nothing where nothing is known", () => {
    expect(placeFields({ tenant: "", traceparent: "", header: () => undefined })).toEqual([]);
  });
});
