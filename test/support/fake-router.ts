import { createHash } from "node:crypto";
import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import {
  hashSeedFingerprint,
  joinProof,
  verifyProof,
  type MeshKeys,
} from "../../services/shared/edge/keys.ts";
import {
  MembershipService,
  ResyncReason,
  type Hello,
  type JoinRequest,
  type JoinResponse,
  type LoadSample,
} from "../../services/shared/gen/kvmesh/worker/v1/worker.ts";

type Call = ServerDuplexStream<JoinRequest, JoinResponse>;

/** How the fake behaves; fields may be changed while it runs. */
export interface FakeRouterScript {
  blockSizeTokens: number;
  protocolVersion: number;
  /** Status that ends the stream in place of an acceptance. */
  refuseWith: { readonly code: number; readonly details: string } | undefined;
  /** Pretends not to have received the delta with this number, once. */
  loseDelta: number | undefined;
  /** Pretends that the digest of the next snapshot is wrong, once. */
  doubtDigest: boolean;
  /** Says nothing after the stream opened. */
  silent: boolean;
  /** Waits before the challenge, ms. */
  challengeDelayMs: number;
  /** Does not acknowledge. */
  noAcks: boolean;
  /** Asks for these files after acceptance. */
  artifacts: readonly Buffer[];
  /** How far its wall clock is ahead, µs. */
  clockAheadUs: number;
}

/** Block set of one stream as the router has it, with everything it was told. */
export interface FakeSession {
  readonly hello: Hello;
  readonly blocks: Set<bigint>;
  readonly loads: LoadSample[];
  readonly states: boolean[];
  readonly artifacts: Map<string, Buffer>;
  appliedSeq: bigint;
  snapshots: number;
  deltas: number;
  largestChunk: number;
  goodbye: string | undefined;
  ended: boolean;
  /** Protocol violations seen. */
  readonly violations: string[];
  readonly call: Call;
}

/** A scripted router: serves `Membership/Join` as the protocol says and checks what the worker sends. */
export class FakeRouter {
  readonly script: FakeRouterScript = {
    blockSizeTokens: 32,
    protocolVersion: 1,
    refuseWith: undefined,
    loseDelta: undefined,
    doubtDigest: false,
    silent: false,
    challengeDelayMs: 0,
    noAcks: false,
    artifacts: [],
    clockAheadUs: 0,
  };
  readonly sessions: FakeSession[] = [];
  attempts = 0;
  readonly #keys: MeshKeys;
  readonly #server = new Server({
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
  });
  #port = 0;

  constructor(keys: MeshKeys, script: Partial<FakeRouterScript> = {}) {
    this.#keys = keys;
    Object.assign(this.script, script);
    this.#server.addService(MembershipService, {
      join: (call: Call) => {
        this.attempts++;
        if (!this.script.silent) this.#serve(call);
        else call.on("data", () => undefined);
      },
    });
  }

  get target(): string {
    return `127.0.0.1:${String(this.#port)}`;
  }

  /** The newest session. */
  get session(): FakeSession | undefined {
    return this.sessions.at(-1);
  }

  async start(port = 0): Promise<this> {
    this.#port = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync(
        `127.0.0.1:${String(port)}`,
        ServerCredentials.createInsecure(),
        (error, bound) => {
          if (error === null) resolve(bound);
          else reject(error);
        },
      );
    });
    return this;
  }

  close(): void {
    this.#server.forceShutdown();
  }

  #serve(call: Call): void {
    const nonce = createHash("sha256").update(String(this.attempts)).digest().subarray(0, 16);
    let session: FakeSession | undefined;
    let snapshot: { base: bigint; hashes: Set<bigint>; xor: bigint } | undefined;
    setTimeout(() => {
      call.write({
        message: {
          $case: "challenge",
          value: {
            protocolVersion: this.script.protocolVersion,
            routerInstance: "fake",
            routerEpoch: 1n,
            nonce,
            blockSizeTokens: this.script.blockSizeTokens,
            hashSeedFingerprint: hashSeedFingerprint(this.#keys),
          },
        },
      });
    }, this.script.challengeDelayMs);
    const fail = (text: string): void => {
      session?.violations.push(text);
    };
    const ack = (echoUnixUs: bigint): void => {
      if (session === undefined || this.script.noAcks) return;
      const routerUnixUs = BigInt(Date.now() * 1_000 + this.script.clockAheadUs);
      call.write({
        message: {
          $case: "ack",
          value: { appliedSeq: session.appliedSeq, echoUnixUs, routerUnixUs },
        },
      });
    };
    const resync = (reason: ResyncReason): void => {
      snapshot = undefined;
      awaitingSnapshot = true;
      call.write({ message: { $case: "resync", value: { reason } } });
    };
    let awaitingSnapshot = true;
    call.on("data", ({ message }: JoinRequest) => {
      if (session === undefined) {
        if (message?.$case !== "hello") {
          call.emit("error", { code: 3, details: "the first message was not hello" });
          return;
        }
        session = this.#accept(call, message.value, nonce);
        return;
      }
      switch (message?.$case) {
        case undefined:
        case "hello":
          fail(`unexpected ${message?.$case ?? "empty message"}`);
          return;
        case "snapshot": {
          const { baseSeq, hashes, last, xorDigest, blockCount } = message.value;
          snapshot ??= { base: baseSeq, hashes: new Set(), xor: 0n };
          if (snapshot.base !== baseSeq) fail("the chunks of a snapshot differ in base_seq");
          const list = hashList(hashes);
          session.largestChunk = Math.max(session.largestChunk, list.length);
          for (const hash of list) {
            snapshot.hashes.add(hash);
            snapshot.xor ^= hash;
          }
          if (!last) return;
          session.snapshots++;
          if (snapshot.xor !== xorDigest) fail("wrong digest");
          if (BigInt(snapshot.hashes.size) !== blockCount) fail("wrong block count");
          if (this.script.doubtDigest) {
            this.script.doubtDigest = false;
            resync(ResyncReason.RESYNC_REASON_DIGEST);
            return;
          }
          session.blocks.clear();
          for (const hash of snapshot.hashes) session.blocks.add(hash);
          session.appliedSeq = baseSeq;
          snapshot = undefined;
          awaitingSnapshot = false;
          ack(0n);
          return;
        }
        case "delta": {
          const { seq, stored, removed, cleared } = message.value;
          if (awaitingSnapshot) return;
          if (seq === BigInt(this.script.loseDelta ?? -1)) {
            this.script.loseDelta = undefined;
            return;
          }
          if (seq !== session.appliedSeq + 1n) {
            resync(ResyncReason.RESYNC_REASON_GAP);
            return;
          }
          session.deltas++;
          session.appliedSeq = seq;
          if (cleared) session.blocks.clear();
          for (const hash of hashList(removed)) {
            if (!session.blocks.delete(hash)) fail("removed a block that was not there");
          }
          for (const hash of hashList(stored)) {
            if (session.blocks.has(hash)) fail("stored a block that was there");
            session.blocks.add(hash);
          }
          ack(session.loads.at(-1)?.sentUnixUs ?? 0n);
          return;
        }
        case "load":
          session.loads.push(message.value);
          ack(message.value.sentUnixUs);
          return;
        case "artifact": {
          const { sha256, content } = message.value;
          const key = sha256.toString("hex");
          if (content.length > 1024 * 1024) fail("an artifact chunk is larger than 1 MiB");
          const before = session.artifacts.get(key) ?? Buffer.alloc(0);
          session.artifacts.set(key, Buffer.concat([before, content]));
          return;
        }
        case "goodbye":
          session.goodbye = message.value.reason;
          return;
        case "state":
          session.states.push(message.value.ready);
          return;
      }
    });
    const ended = (): void => {
      if (session !== undefined) session.ended = true;
    };
    call.on("end", () => {
      ended();
      call.end();
    });
    call.on("cancelled", ended);
    call.on("error", ended);
  }

  #accept(call: Call, hello: Hello, nonce: Buffer): FakeSession | undefined {
    const { refuseWith } = this.script;
    const proves = verifyProof(this.#keys.join, hello.joinProof, (key) =>
      joinProof(key, {
        workerId: hello.workerId,
        engineAddress: hello.engineAddress,
        workerStartMs: hello.epoch?.workerStartMs ?? 0n,
        engineLife: hello.epoch?.engineLife ?? 0n,
        nonce,
      }),
    );
    const refusal =
      refuseWith ?? (proves ? undefined : { code: 16, details: "join proof is wrong" });
    if (refusal !== undefined) {
      call.emit("error", refusal);
      return undefined;
    }
    const session: FakeSession = {
      hello,
      blocks: new Set(),
      loads: [],
      states: [],
      artifacts: new Map(),
      appliedSeq: 0n,
      snapshots: 0,
      deltas: 0,
      largestChunk: 0,
      goodbye: undefined,
      ended: false,
      violations: [],
      call,
    };
    this.sessions.push(session);
    call.write({ message: { $case: "accepted", value: {} } });
    for (const sha256 of this.script.artifacts) {
      call.write({ message: { $case: "artifact", value: { sha256 } } });
    }
    return session;
  }
}

function hashList(bytes: Buffer): bigint[] {
  const out: bigint[] = [];
  for (let at = 0; at < bytes.length; at += 8) out.push(bytes.readBigUInt64LE(at));
  return out;
}
