import { badRequest } from "../vllm-error.ts";
import type { JsonObject } from "../request-body.ts";
import { exactInteger, isPort } from "./exact-integer.ts";
import type { PeerAddress } from "./kv-peers.ts";
import type { EngineRole, TransferProtocol, TransferRole } from "./transfer-role.ts";

/** Largest room: 63 bits. */
const roomMax = 2n ** 63n - 1n;

/**
 * SGLang's P/D (`srt/disaggregation`, 0.5.15, from its sources): the same body to both engines at once, which meet in
 * `bootstrap_room`. Role `both` is `--disaggregation-mode null`: the fields are ignored.
 */
export function sglangTransfer(options: {
  role: EngineRole;
  /** Finds the block server behind a bootstrap server. */
  lookUp: (bootstrap: PeerAddress) => Promise<PeerAddress>;
}): TransferProtocol {
  const { role, lookUp } = options;
  return {
    read(json, bytes): TransferRole {
      if (role === "both") return { kind: "whole" };
      const room = readRoom(json, bytes);
      if (role === "prefill") return { kind: "prefill", room, outputTokensMax: 1, key: undefined };
      const bootstrap = readBootstrap(json);
      return {
        kind: "decode",
        mode: "room",
        key: room,
        address: () => lookUp(bootstrap),
        remoteBlocks: [],
        cachedTokens: undefined,
        firstTokens: undefined,
        // The decode side has no radix cache unless `--disaggregation-decode-enable-radix-cache`.
        localHits: false,
        isLeased: false,
      };
    },
    handoffFields: () => undefined,
  };
}

function readRoom(json: JsonObject, bytes: Buffer): string {
  const given = only(json["bootstrap_room"]);
  if (given === undefined || given === null) {
    throw badRequest(
      "Invalid request: Disaggregated request received without bootstrap room id.",
      "bootstrap_room",
    );
  }
  const digits = exactInteger(given, "bootstrap_room", bytes);
  if (digits === undefined || BigInt(digits) > roomMax) {
    throw badRequest("bootstrap_room must be an integer from 0 to 2^63-1.", "bootstrap_room");
  }
  return digits;
}

function readBootstrap(json: JsonObject): PeerAddress {
  const host = only(json["bootstrap_host"]);
  const port = only(json["bootstrap_port"]) ?? 8_998;
  if (typeof host !== "string" || host === "") {
    throw badRequest("bootstrap_host must name the prefill engine's host.", "bootstrap_host");
  }
  if (!isPort(port)) {
    throw badRequest("bootstrap_port must be a port.", "bootstrap_port");
  }
  return { host, port };
}

/** Batched requests carry lists; here there is one prompt. */
function only(value: unknown): unknown {
  if (!Array.isArray(value)) return value;
  if (value.length === 1) return value[0] as unknown;
  throw badRequest("bootstrap fields need one entry, as there is one prompt.", "bootstrap_room");
}
