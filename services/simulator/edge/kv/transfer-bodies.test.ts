import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { VllmError } from "../vllm-error.ts";
import { BootstrapServer } from "./bootstrap.ts";
import { exactInteger, rawInteger } from "./exact-integer.ts";
import { sglangTransfer } from "./sglang-transfer.ts";
import { tensorrtTransfer } from "./tensorrt-transfer.ts";
import type { TransferProtocol, TransferRole } from "./transfer-role.ts";
import { vllmTransfer } from "./vllm-transfer.ts";

const address = () => ({ host: "127.0.0.1", port: 5_600 });
const lookUp = () => Promise.resolve(address());
const protocols: Readonly<Record<string, TransferProtocol>> = {
  vllm: vllmTransfer({ engineId: "e", address }),
  sglangPrefill: sglangTransfer({ role: "prefill", lookUp }),
  sglangDecode: sglangTransfer({ role: "decode", lookUp }),
  tensorrt: tensorrtTransfer({ address, isHeld: () => false }),
};

const read = (name: string, body: Record<string, unknown>): TransferRole =>
  protocols[name]!.read(body, Buffer.from(JSON.stringify(body)));

/** Anything JSON may hold, often in the shape that is looked for. */
const field = fc.oneof(
  fc.jsonValue(),
  fc.constantFrom(true, false, 1, 0, "a", [1], [[1, 2]], null),
);
const body = fc.dictionary(
  fc.constantFrom(
    "kv_transfer_params",
    "disaggregated_params",
    "bootstrap_room",
    "bootstrap_host",
    "bootstrap_port",
  ),
  fc.oneof(
    field,
    fc.dictionary(
      fc.constantFrom(
        "do_remote_prefill",
        "do_remote_decode",
        "remote_engine_id",
        "remote_request_id",
        "remote_block_ids",
        "remote_host",
        "remote_port",
        "request_type",
        "ctx_request_id",
        "disagg_request_id",
        "first_gen_tokens",
        "encoded_opaque_state",
        "schedule_style",
      ),
      fc.oneof(field, fc.constantFrom("context_only", "generation_only")),
    ),
  ),
);

describe("transfer fields of a body", () => {
  test.each(Object.keys(protocols))("%s: whatever they hold gives a role or a 400", (name) => {
    fc.assert(
      fc.property(body, (json) => {
        try {
          expect(["whole", "prefill", "decode", "lethal"]).toContain(read(name, json).kind);
        } catch (error) {
          expect(error).toBeInstanceOf(VllmError);
          expect((error as VllmError).status).toBe(400);
        }
      }),
      { numRuns: 500 },
    );
  });

  test("of vLLM are complete or lethal", () => {
    const whole = {
      do_remote_prefill: true,
      remote_engine_id: "e",
      remote_request_id: "r",
      remote_block_ids: [[4, 5]],
      remote_host: "h",
      remote_port: 5_600,
    };
    expect(read("vllm", { kv_transfer_params: whole })).toMatchObject({
      kind: "decode",
      key: "r",
      remoteBlocks: [4, 5],
    });
    const flat = { ...whole, remote_block_ids: [4, 5] };
    expect(read("vllm", { kv_transfer_params: flat })).toMatchObject({ remoteBlocks: [4, 5] });
    for (const missing of Object.keys(whole).slice(1)) {
      const rest = Object.fromEntries(Object.entries(whole).filter(([name]) => name !== missing));
      expect(read("vllm", { kv_transfer_params: rest })).toEqual({ kind: "lethal" });
    }
  });
});

describe("ports", () => {
  test.each([0, -1, 5_600.5, 65_536, "5600", null])("%s is refused", async (port) => {
    const state = Buffer.from(JSON.stringify({ host: "127.0.0.1", port })).toString("base64");
    const params = {
      request_type: "generation_only",
      ctx_request_id: 7,
      first_gen_tokens: [1],
      encoded_opaque_state: state,
    };
    expect(() => read("tensorrt", { disaggregated_params: params })).toThrow(
      "encoded_opaque_state",
    );
    const server = new BootstrapServer({ pageSize: 16, kvCacheDtype: "auto" });
    const own = await server.listen("127.0.0.1", 0);
    try {
      const response = await fetch(`http://127.0.0.1:${own}/route`, {
        method: "PUT",
        body: JSON.stringify({ rank_ip: "127.0.0.1", rank_port: port }),
      });
      expect(response.status).toBe(400);
    } finally {
      server.close();
    }
  });
});

describe("integers beyond 2^53", () => {
  test("are read and written digit by digit, from the last field of the name", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
        const text = `{"prompt":"\\"room\\": 123, ","room": ${value},"x":1}`;
        const parsed = JSON.parse(text) as { room: number };
        const digits = exactInteger(parsed.room, "room", Buffer.from(text));
        expect(digits).toBe(String(value));
        expect(JSON.stringify({ id: rawInteger(digits!) })).toBe(`{"id":${value}}`);
      }),
    );
  });

  test.each([[-1], [1.5], ["7"], [null], [true], [Number.NaN]])("%s is none", (value) => {
    expect(exactInteger(value, "room", Buffer.from("{}"))).toBeUndefined();
  });
});
