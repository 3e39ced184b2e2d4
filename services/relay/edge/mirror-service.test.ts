import { createHmac } from "node:crypto";
import { describe, expect, test } from "vitest";
import type { TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import { mirrorProofMessage } from "../../shared/core/placement-token/relay-proof.ts";
import { realClock } from "../../shared/edge/clock.ts";
import {
  KeepRequest,
  TakeRequest,
  type MirrorHello,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import { MirrorStore } from "../core/resume/mirror-store.ts";
import { createMirrorMethods } from "./mirror-service.ts";

const key: TokenKey = {
  id: "j1",
  mac: (message) => createHmac("sha256", "secret").update(message).digest(),
};

/** Calls a method with one message, and gives the status that it ends with; nothing while it goes on. */
function statusOf(method: "Keep" | "Take", message: Uint8Array): number | undefined {
  const store = new MirrorStore({ streamBytesMax: 4_096, bytesMax: 20_000, keepMs: 1_000 });
  const methods = createMirrorMethods({ store, joinKeys: [key], clock: realClock });
  let ended: number | undefined;
  const handler = methods.get(`/kvmesh.relay.v1.Mirror/${method}`)?.({
    path: method,
    header: () => undefined,
    send: () => undefined,
    end: (status = 0) => {
      ended ??= status;
    },
    queuedBytes: 0,
  });
  handler?.onMessage(message);
  if (method === "Take") handler?.onHalfClose();
  return ended;
}

function helloOf(epoch: bigint, proofMinute?: bigint): MirrorHello {
  const minute = Math.floor(realClock.wallUnixUs() / 60_000_000);
  const proof = key.mac(mirrorProofMessage({ relay: "relay-1", epoch: 5, minute }));
  return {
    protocolVersion: 1,
    instance: "relay-1",
    epoch,
    proof: Buffer.from(proof),
    joinKeyId: key.id,
    proofMinute: proofMinute ?? BigInt(minute),
  };
}

describe("a caller's proof", () => {
  const keep = (value: MirrorHello): number | undefined =>
    statusOf("Keep", KeepRequest.encode({ message: { $case: "hello", value } }).finish());
  const take = (caller: MirrorHello): number | undefined =>
    statusOf("Take", TakeRequest.encode({ key: Buffer.alloc(16), caller }).finish());

  test("lets a relay in that holds the key", () => {
    expect(keep(helloOf(5n))).toBeUndefined();
    expect(take(helloOf(5n))).toBe(5);
  });

  test.each([
    ["an epoch", helloOf(2n ** 53n)],
    ["the largest epoch", helloOf(2n ** 64n - 1n)],
    ["a minute", helloOf(5n, 2n ** 53n)],
  ])("is none with %s that is no exact number", (_, hello) => {
    expect(keep(hello)).toBe(16);
    expect(take(hello)).toBe(16);
  });
});
