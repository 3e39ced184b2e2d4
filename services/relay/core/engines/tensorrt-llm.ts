import type { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { editObject, type FieldEdit } from "../body/edit-object.ts";
import { scanDocument, scanField, scanFirst } from "../body/scanned-object.ts";
import type { EngineAdapter, PairRequest, PrefillReading } from "./engine-adapter.ts";
import { readUsage } from "./prefill-usage.ts";

const decoder = new TextDecoder();

/** Reasons of a context answer after which there is something left to generate. */
const goesOn: ReadonlySet<unknown> = new Set(["length", "not_finished"]);

/**
 * TensorRT-LLM (1.2, 1.3), context first. The context server answers the first token and `disaggregated_params`; unless
 * that token ended the answer, the generation server gets the client's body with the same object, told that it
 * generates, and the prompt as the token ids that the context server made of it.
 */
export function createTensorrtLlmAdapter(json: JsonScanner): EngineAdapter {
  return {
    name: "tensorrt-llm",
    order: "sequential",
    canPrefillOnDecode: true,
    tellsTokenIds: false,
    start({ body, room }) {
      const edits: FieldEdit[] = [{ name: "stream", json: "false" }];
      if (body.object.find("stream_options") !== undefined) {
        edits.push({ name: "stream_options", json: "null" });
      }
      edits.push({
        name: "disaggregated_params",
        json: `{"request_type":"context_only","disagg_request_id":${String(room)},"schedule_style":0}`,
      });
      return { prefillBody: editObject(body.object, edits) };
    },
    readPrefill(request: PairRequest, bytes: Uint8Array): PrefillReading {
      const answer = scanDocument(json, bytes);
      const choice = answer === undefined ? undefined : scanFirst(json, answer, "choices");
      if (answer === undefined || choice === undefined) {
        return { kind: "none", why: "the answer has no choices" };
      }
      const usage = readUsage(json, answer);
      if (!goesOn.has(choice.value("finish_reason")))
        return { kind: "final", answer: bytes, usage };
      const params = scanField(json, choice, "disaggregated_params");
      if (params === undefined) {
        return { kind: "none", why: "the answer has no disaggregated_params" };
      }
      const paramEdits: FieldEdit[] = [{ name: "request_type", json: '"generation_only"' }];
      const ctxUsage = answer.raw("usage");
      if (ctxUsage !== undefined) paramEdits.push({ name: "ctx_usage", json: ctxUsage });
      const edits: FieldEdit[] = [
        { name: "disaggregated_params", json: decoder.decode(editObject(params, paramEdits)) },
      ];
      const ids = answer.raw("prompt_token_ids");
      if (ids?.startsWith("[") === true) {
        const name = request.body.kind === "chat" ? "prompt_token_ids" : "prompt";
        edits.push({ name, json: ids });
      }
      return { kind: "handoff", decodeBody: editObject(request.body.object, edits), usage };
    },
  };
}
