import type { JsonObject } from "../request-body.ts";
import { isPort } from "./exact-integer.ts";
import {
  isTruthy,
  objectField,
  type HandedOff,
  type HandoffFields,
  type TransferProtocol,
  type TransferRole,
} from "./transfer-role.ts";

/**
 * vLLM's NixlConnector in pull mode (`kv_transfer/kv_connector/v1/nixl`, 0.32.0 as run): `kv_transfer_params` in the
 * prefill answer, copied verbatim into the decode leg. Blocks are read by their physical ids, whether or not the
 * hand-off still holds them. That any missing key kills the engine core is observed for all of them missing and
 * assumed for some.
 */
export function vllmTransfer(options: {
  engineId: string;
  /** Address of the block server as other engines reach it; known once it listens. */
  address: () => { host: string; port: number };
}): TransferProtocol {
  return {
    read(json): TransferRole {
      const params = objectField(json, "kv_transfer_params");
      if (params === undefined) return { kind: "whole" };
      if (isTruthy(params["do_remote_prefill"])) return readDecode(params);
      if (!isTruthy(params["do_remote_decode"])) return { kind: "whole" };
      return { kind: "prefill", room: undefined, outputTokensMax: undefined, key: undefined };
    },
    handoffFields(handoff: HandedOff): HandoffFields | undefined {
      if (handoff.finishReason !== "length" && handoff.finishReason !== "stop") return undefined;
      const { host, port } = options.address();
      const params = {
        do_remote_prefill: true,
        do_remote_decode: false,
        remote_block_ids: [handoff.blocks],
        remote_engine_id: options.engineId,
        remote_request_id: handoff.key,
        remote_host: host,
        remote_port: port,
        tp_size: 1,
        dcp_size: 1,
        pp_size: 1,
        remote_num_tokens: handoff.promptTokens.length,
        remote_blocks_expiry_time: null,
        transfer_mode: "pull",
        remote_prefill_cached_tokens: handoff.cachedTokens,
      };
      return { top: { kv_transfer_params: params } };
    },
  };
}

function readDecode(params: JsonObject): TransferRole {
  const blocks = blockIds(params["remote_block_ids"]);
  const host = params["remote_host"];
  const port = params["remote_port"];
  const key = params["remote_request_id"];
  const isComplete =
    blocks !== undefined &&
    typeof host === "string" &&
    isPort(port) &&
    typeof key === "string" &&
    typeof params["remote_engine_id"] === "string";
  if (!isComplete) return { kind: "lethal" };
  const cached = params["remote_prefill_cached_tokens"];
  return {
    kind: "decode",
    mode: "blocks",
    key,
    address: () => Promise.resolve({ host, port }),
    remoteBlocks: blocks,
    cachedTokens: typeof cached === "number" ? cached : undefined,
    firstTokens: undefined,
    localHits: true,
    isLeased: true,
  };
}

/** One list per KV cache group since 0.2x, of which there is one here; a flat list before. */
function blockIds(value: unknown): readonly number[] | undefined {
  if (!Array.isArray(value)) return undefined;
  const list = (Array.isArray(value[0]) ? value[0] : value) as readonly unknown[];
  const isIds = list.every((id) => typeof id === "number" && Number.isInteger(id) && id >= 0);
  return isIds ? (list as readonly number[]) : undefined;
}
