import { badRequest } from "../vllm-error.ts";
import { tokenList, type JsonObject } from "../request-body.ts";
import { exactInteger, isPort, numberAt, rawInteger } from "./exact-integer.ts";
import type { PeerAddress } from "./kv-peers.ts";
import {
  objectField,
  type HandedOff,
  type HandoffFields,
  type TransferProtocol,
  type TransferRole,
} from "./transfer-role.ts";

/** Ids that fit 64 bits. */
const idMax = 2n ** 64n - 1n;

/**
 * TensorRT-LLM's disaggregated serving, context first (`serve/openai_disagg_service.py`, `disaggregated_params.py`,
 * 1.3.0rc, from its sources): `disaggregated_params` in the body and in the context leg's choice. Here the opaque state
 * is the address of the context engine's block server.
 */
export function tensorrtTransfer(options: {
  address: () => PeerAddress;
  /** Whether a context with this id is held already. */
  isHeld: (key: string) => boolean;
}): TransferProtocol {
  let ownId = 0;
  return {
    read(json, bytes): TransferRole {
      const params = objectField(json, "disaggregated_params");
      if (params === undefined) return { kind: "whole" };
      switch (params["request_type"]) {
        case "context_and_generation":
          return { kind: "whole" };
        case "context_only": {
          if (params["schedule_style"] === 1) {
            throw refused("schedule_style 1 (generation first) is not served here.");
          }
          const given = params["disagg_request_id"] ?? undefined;
          const key =
            given === undefined ? String(++ownId) : readId(given, "disagg_request_id", bytes);
          if (options.isHeld(key)) throw refused(`disagg_request_id ${key} is in use.`);
          return { kind: "prefill", room: undefined, outputTokensMax: 1, key };
        }
        case "generation_only":
          return readGeneration(params, bytes);
        default:
          throw refused(
            "request_type must be context_only, generation_only or context_and_generation.",
          );
      }
    },
    handoffFields(handoff: HandedOff): HandoffFields | undefined {
      // A first token that ends the answer leaves nothing to generate.
      if (handoff.finishReason !== "length") return undefined;
      const state = JSON.stringify(options.address());
      const id = rawInteger(handoff.key);
      return {
        finishReason: handoff.outputTokensMax === 1 ? "length" : "not_finished",
        top: { prompt_token_ids: handoff.promptTokens },
        choice: {
          disaggregated_params: {
            request_type: "context_only",
            first_gen_tokens: [handoff.firstToken],
            first_gen_log_probs: null,
            ctx_request_id: id,
            encoded_opaque_state: Buffer.from(state).toString("base64"),
            draft_tokens: null,
            disagg_request_id: id,
            ctx_dp_rank: 0,
            ctx_info_endpoint: null,
            schedule_style: 0,
          },
        },
      };
    },
  };
}

function readGeneration(params: JsonObject, bytes: Buffer): TransferRole {
  const key = readId(params["ctx_request_id"], "ctx_request_id", bytes);
  const firstTokens = tokenList(
    params["first_gen_tokens"],
    "disaggregated_params.first_gen_tokens",
  );
  if (firstTokens.length === 0) throw refused("first_gen_tokens must have a token.");
  const address = readState(params["encoded_opaque_state"]);
  return {
    kind: "decode",
    mode: "handoff",
    key,
    address: () => Promise.resolve(address),
    remoteBlocks: [],
    cachedTokens: numberAt(params, "ctx_usage", "prompt_tokens_details", "cached_tokens"),
    firstTokens,
    localHits: false,
    isLeased: true,
  };
}

function readId(value: unknown, field: string, bytes: Buffer): string {
  const digits = exactInteger(value, field, bytes);
  if (digits === undefined || BigInt(digits) > idMax) {
    throw refused(`${field} must be an unsigned 64-bit integer.`);
  }
  return digits;
}

function readState(value: unknown): PeerAddress {
  if (typeof value === "string") {
    try {
      const state = JSON.parse(Buffer.from(value, "base64").toString()) as Partial<PeerAddress>;
      const { host, port } = state;
      if (typeof host === "string" && isPort(port)) {
        return { host, port };
      }
    } catch {
      // Refused below.
    }
  }
  throw refused("encoded_opaque_state is not what the context leg gave.");
}

function refused(message: string): Error {
  return badRequest(message, "disaggregated_params");
}
