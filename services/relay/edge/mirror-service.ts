import type { Clock } from "../../shared/core/clock.ts";
import { equalBytes, type TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import { mirrorProofMessage } from "../../shared/core/placement-token/relay-proof.ts";
import type { GrpcMethod } from "../../shared/edge/h2/grpc-stream.ts";
import { unaryMethod } from "../../shared/edge/h2/grpc-unary.ts";
import {
  KeepRequest,
  KeepResponse,
  TakeRequest,
  TakeResponse,
  type MirrorHello,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import type { MirrorStore } from "../core/resume/mirror-store.ts";

const proofMinutesMax = 2;
const unauthenticated = 16;
const notFound = 5;
const invalidArgument = 3;

/** Whether a caller holds a join key. */
function isProven(
  hello: MirrorHello | undefined,
  keys: readonly TokenKey[],
  clock: Clock,
): boolean {
  const key = keys.find(({ id }) => id === hello?.joinKeyId);
  if (hello === undefined || key === undefined) return false;
  const minute = Number(hello.proofMinute);
  const epoch = Number(hello.epoch);
  if (!Number.isSafeInteger(minute) || !Number.isSafeInteger(epoch)) return false;
  if (Math.abs(minute - clock.wallUnixUs() / 60_000_000) > proofMinutesMax + 1) return false;
  const message = mirrorProofMessage({ relay: hello.instance, epoch, minute });
  return equalBytes(key.mac(message), hello.proof);
}

/** The methods of `kvmesh.relay.v1.Mirror`: keeps other relays' streams, and hands them over. */
export function createMirrorMethods(options: {
  readonly store: MirrorStore;
  readonly joinKeys: readonly TokenKey[];
  readonly clock: Clock;
}): ReadonlyMap<string, GrpcMethod> {
  const { store, joinKeys, clock } = options;
  const keep: GrpcMethod = (stream) => {
    let proven = false;
    return {
      onMessage(bytes) {
        let message: KeepRequest["message"];
        try {
          ({ message } = KeepRequest.decode(bytes));
        } catch {
          stream.end(invalidArgument, "the message is no KeepRequest");
          return;
        }
        if (message?.$case === "hello") {
          proven = isProven(message.value, joinKeys, clock);
          if (!proven) stream.end(unauthenticated, "the proof does not fit: compare mesh.keys");
          return;
        }
        if (message === undefined) return;
        if (!proven) {
          stream.end(unauthenticated, "the first message must be hello");
          return;
        }
        const answer: KeepResponse = { refusedKeys: [], acks: [] };
        for (const { key, fromIndex, tokenIds, head, ended } of message.value.streams) {
          const name = Buffer.from(key).toString("latin1");
          if (ended) {
            store.remove(name);
            continue;
          }
          const tokenCount = store.grow(name, { fromIndex, ids: tokenIds, head }, clock.now());
          if (tokenCount < 0) answer.refusedKeys.push(key);
          else answer.acks.push({ key, tokenCount });
        }
        stream.send(KeepResponse.encode(answer).finish());
      },
      onHalfClose: () => {
        stream.end();
      },
      onClose: () => undefined,
    };
  };
  const take = unaryMethod((bytes) => {
    let request: TakeRequest;
    try {
      request = TakeRequest.decode(bytes);
    } catch {
      return { status: invalidArgument, text: "the message is no TakeRequest" };
    }
    if (!isProven(request.caller, joinKeys, clock)) {
      return { status: unauthenticated, text: "the proof does not fit: compare mesh.keys" };
    }
    const state = store.take(Buffer.from(request.key).toString("latin1"));
    if (state === undefined) return { status: notFound, text: "nothing is kept of this stream" };
    return {
      message: TakeResponse.encode({
        head: Buffer.from(state.head),
        tokenIds: Buffer.from(state.ids),
      }).finish(),
    };
  });
  return new Map([
    ["/kvmesh.relay.v1.Mirror/Keep", keep],
    ["/kvmesh.relay.v1.Mirror/Take", take],
  ]);
}
