import { describe, expect, test } from "vitest";
import { findWrongForm, modelsQuestion } from "./request-form.ts";

const form = (method: string, path: string, encoding?: string, contentType?: string) =>
  findWrongForm({ method, path, contentEncoding: encoding, contentType });

describe("the form of a request", () => {
  test.each([
    ["GET", "/v1/chat/completions", "POST"],
    ["DELETE", "/v1/chat/completions?x=1", "POST"],
    ["OPTIONS", "/v1/completions", "POST"],
    ["HEAD", "/v1/completions/", "POST"],
    ["POST", "/v1/models", "GET, HEAD"],
    ["DELETE", "/v1/models/m", "GET, HEAD"],
  ])("%s %s is refused with the methods that the path has: %s", (method, path, allow) => {
    expect(form(method, path)).toMatchObject({ status: 405, allow });
  });

  test.each([
    ["POST", "/v1/chat/completions"],
    ["POST", "/v1/completions?x=1"],
    ["GET", "/v1/models"],
    ["HEAD", "/v1/models/m"],
    ["GET", "/v1/responses/1"],
    ["DELETE", "/v1/responses/1"],
  ])("%s %s is good", (method, path) => {
    expect(form(method, path)).toBeUndefined();
  });

  test("an encoded body is refused where it would be read, and its encoding named", () => {
    expect(form("POST", "/v1/chat/completions", "gzip")).toMatchObject({ status: 415 });
    expect(form("POST", "/v1/chat/completions", "gzip")?.message).toContain('"gzip"');
    expect(form("POST", "/v1/embeddings", "br", "application/json")).toMatchObject({ status: 415 });
    expect(form("POST", "/v1/audio/transcriptions", "gzip", "multipart/form-data")).toBeUndefined();
    expect(form("POST", "/v1/chat/completions", " Identity ")).toBeUndefined();
  });
});

test.each([
  ["/v1/models", { id: undefined }],
  ["/v1/models/", { id: undefined }],
  ["/v1/models?x=/y", { id: undefined }],
  ["/v1/models/m", { id: "m" }],
  ["/v1/models/Org/Name-1.5?x=1", { id: "Org/Name-1.5" }],
  ["/v1/models/Org%2FName/", { id: "Org/Name" }],
  ["/v1/models/%zz", { id: "%zz" }],
  ["/v1/modelsx", undefined],
  ["/v1/completions", undefined],
])("%s asks for the models %j", (path, expected) => {
  expect(modelsQuestion(path)).toEqual(expected);
});
