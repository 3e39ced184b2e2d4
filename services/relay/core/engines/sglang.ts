import { parseEndpoint } from "../../../shared/core/endpoint.ts";
import { invariant } from "../../../shared/core/invariant.ts";
import { editObject } from "../body/edit-object.ts";
import type { EngineAdapter, PairStart } from "./engine-adapter.ts";

/**
 * SGLang (0.5). Both legs get the same body at the same time, with the prefill engine's bootstrap server and a room in
 * which they meet. The client gets decode's answer; prefill's is only drained. A decode engine never prefills, so that a
 * failure of either leg ends both.
 */
export const sglangAdapter: EngineAdapter = {
  name: "sglang",
  order: "concurrent",
  canPrefillOnDecode: false,
  tellsTokenIds: false,
  start({ body, prefill, room }): PairStart {
    const bootstrap = parseEndpoint(prefill.bootstrap);
    invariant(bootstrap !== undefined, "a leg without bootstrap was not refused");
    const edits = [
      { name: "bootstrap_host", json: JSON.stringify(bootstrap.host) },
      { name: "bootstrap_port", json: String(bootstrap.port) },
      { name: "bootstrap_room", json: String(room) },
    ];
    const { dpRank } = prefill;
    const paired = editObject(body.object, edits);
    if (dpRank === undefined) return { prefillBody: paired, decodeBody: paired };
    const rank = String(dpRank);
    return {
      prefillBody: editObject(body.object, [...edits, { name: "routed_dp_rank", json: rank }]),
      decodeBody: editObject(body.object, [
        ...edits,
        { name: "disagg_prefill_dp_rank", json: rank },
      ]),
    };
  },
  readPrefill: () => ({ kind: "none", why: "decode did not need it" }),
};
