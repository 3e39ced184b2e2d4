import type { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { editObject } from "../body/edit-object.ts";
import { scanDocument } from "../body/scanned-object.ts";
import type { EngineAdapter, PairRequest, PrefillReading } from "./engine-adapter.ts";
import { handoffBlocks } from "./handoff-blocks.ts";
import { oneTokenEdits, readUsage } from "./prefill-usage.ts";

const askForHandoff =
  '{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,' +
  '"remote_block_ids":null,"remote_host":null,"remote_port":null}';

/**
 * vLLM with NixlConnector in pull mode (0.9 to 0.32). Prefill answers one token and `kv_transfer_params`; decode gets the
 * client's body with that object, byte for byte, and computes the first token itself. The object is good once: decode
 * reads whatever lies in those blocks when it is used again.
 */
export function createVllmAdapter(json: JsonScanner): EngineAdapter {
  return {
    name: "vllm",
    order: "sequential",
    canPrefillOnDecode: true,
    transport: "nixl",
    tellsTokenIds: true,
    start({ body }) {
      const edits = oneTokenEdits(body.object);
      edits.push({ name: "kv_transfer_params", json: askForHandoff });
      return { prefillBody: editObject(body.object, edits) };
    },
    readPrefill(request: PairRequest, bytes: Uint8Array): PrefillReading {
      const answer = scanDocument(json, bytes);
      if (answer === undefined) return { kind: "none", why: "the answer is no JSON object" };
      const params = answer.raw("kv_transfer_params");
      if (params?.startsWith("{") !== true || params === "{}") {
        return { kind: "none", why: "the answer has no kv_transfer_params" };
      }
      const usage = readUsage(json, answer);
      const edits = [{ name: "kv_transfer_params", json: params }];
      const decodeBody = editObject(request.body.object, edits);
      const blocks = handoffBlocks(params);
      return { kind: "handoff", decodeBody, usage, ...(blocks === undefined ? {} : { blocks }) };
    },
  };
}
