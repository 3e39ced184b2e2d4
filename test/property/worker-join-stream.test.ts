import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { monoMs } from "../../services/shared/core/ids.ts";
import {
  JoinStream,
  type JoinInput,
  type JoinLimits,
  type JoinMember,
  type JoinOutput,
} from "../../services/worker/core/join-stream.ts";
import type { LoadSample } from "../../services/worker/core/load-sample.ts";

const fingerprint = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
const nonce = new Uint8Array(16).fill(5);
const limits: JoinLimits = {
  pendingBlocksMax: 12,
  hashesPerMessage: 5,
  artifactBytesPerMessage: 4,
  handshakeMsMax: 1_000,
  blockedMsMax: 2_000,
  ackMsMax: 3_000,
  snapshotIntervalMsMin: 50,
};
const challenge = {
  protocolVersion: 1,
  routerInstance: "r",
  routerEpoch: 1n,
  nonce,
  blockSizeTokens: 32,
  hashSeedFingerprint: fingerprint,
};
const idle: LoadSample = {
  running: 0,
  waiting: 0,
  kvUsageRatio: 0,
  promptTokens: 0,
  prefixQueryTokens: 0,
  prefixHitTokens: 0,
  generatedTokens: 0,
  finishedRequests: 0,
  preemptions: 0,
  interTokenSecondsSum: 0,
  interTokenCount: 0,
  prefillSecondsSum: 0,
  prefillCount: 0,
};

/** The worker's side: the true set, and what a member tells a stream. */
class Truth implements JoinMember {
  readonly hashSeedFingerprint = fingerprint;
  readonly held = new Set<number>();
  ready = true;
  readonly artifacts = new Map([["aa", 10]]);

  agreeBlockSize(): undefined {
    return undefined;
  }

  meshHashes(): Uint32Array {
    return Uint32Array.from([...this.held].flatMap((id) => [id, id ^ 0xffff]));
  }

  isReady(): { ready: boolean; reason: string } {
    return { ready: this.ready, reason: "test" };
  }

  artifactSize(sha256: string): number | undefined {
    return this.artifacts.get(sha256);
  }
}

function idsOf(hashes: Uint32Array): number[] {
  const out: number[] = [];
  for (let i = 0; i < hashes.length; i += 2) {
    expect(hashes[i + 1]).toBe((hashes[i] ?? 0) ^ 0xffff);
    out.push(hashes[i] ?? 0);
  }
  return out;
}

/** The router's side, strict: every change must be a real one and every number in order. */
class Receiver {
  held = new Set<number>();
  appliedSeq = 0;
  synced = false;
  #part: { readonly base: number; readonly ids: number[] } | undefined;
  largest = 0;

  take(output: JoinOutput): void {
    if (output.kind === "snapshot") {
      const { chunk } = output;
      this.#part ??= { base: chunk.baseSeq, ids: [] };
      expect(chunk.baseSeq).toBe(this.#part.base);
      this.#part.ids.push(...idsOf(chunk.hashes));
      this.largest = Math.max(this.largest, chunk.hashes.length / 2);
      if (!chunk.last) return;
      expect(chunk.blockCount).toBe(this.#part.ids.length);
      let [lo, hi] = [0, 0];
      for (const id of this.#part.ids) [lo, hi] = [(lo ^ id) >>> 0, (hi ^ id ^ 0xffff) >>> 0];
      expect([chunk.digestLo, chunk.digestHi]).toEqual([lo, hi]);
      this.held = new Set(this.#part.ids);
      this.appliedSeq = this.#part.base;
      this.#part = undefined;
      this.synced = true;
    } else if (output.kind === "delta") {
      // Between the parts of a snapshot nothing else about blocks is said.
      expect(this.#part).toBeUndefined();
      const { stored, removed, cleared } = output.change;
      this.largest = Math.max(this.largest, (stored.length + removed.length) / 2);
      expect(output.eventAgeMs).toBeGreaterThanOrEqual(0);
      if (!this.synced) return;
      expect(output.seq).toBe(this.appliedSeq + 1);
      this.appliedSeq = output.seq;
      if (cleared) this.held.clear();
      for (const id of idsOf(removed)) expect(this.held.delete(id)).toBe(true);
      for (const id of idsOf(stored)) {
        expect(this.held.has(id)).toBe(false);
        this.held.add(id);
      }
    }
  }
}

const script = fc.array(
  fc.record({
    do: fc.constantFrom(
      "toggle", "toggle", "toggle", "toggle", "clear", "send", "send", "send", "wait", "resync", "block", "ready", "load", "reopen",
    ), // prettier-ignore
    id: fc.nat(30),
  }),
  { maxLength: 200, size: "max" },
);

describe("JoinStream", () => {
  test("gives a strict receiver exactly the member's set, merged, in order and within bounds", () => {
    fc.assert(
      fc.property(script, (steps) => {
        const truth = new Truth();
        const stream = new JoinStream(truth, limits);
        let receiver = new Receiver();
        let ms = 0;
        const send = (most: number): void => {
          for (let i = 0; i < most && !stream.isBlocked; i++) {
            const output = stream.next({ now: monoMs(ms), wallUnixMs: ms });
            if (output === undefined) return;
            receiver.take(output);
          }
        };
        const input = (one: JoinInput): void => {
          expect(stream.step(one, monoMs(ms))).toBeUndefined();
        };
        const open = (): void => {
          receiver = new Receiver();
          input({ kind: "opened" });
          input({ kind: "challenge", challenge });
          send(1);
          input({ kind: "accepted" });
        };
        open();
        for (const step of steps) {
          switch (step.do) {
            case "toggle":
              if (truth.held.delete(step.id)) stream.removed(step.id, step.id ^ 0xffff);
              else {
                truth.held.add(step.id);
                stream.stored(step.id, step.id ^ 0xffff);
              }
              stream.eventsApplied(ms);
              break;
            case "clear":
              if (truth.held.size > 0) stream.cleared();
              truth.held.clear();
              stream.eventsApplied(ms);
              break;
            case "send":
              stream.setWritable(true, monoMs(ms));
              send(step.id % 4);
              break;
            case "wait":
              ms += step.id * 4;
              break;
            case "resync":
              receiver.synced = false;
              input({ kind: "resync" });
              break;
            case "block":
              stream.setWritable(false, monoMs(ms));
              break;
            case "ready":
              truth.ready = !truth.ready;
              break;
            case "load":
              stream.sampled(idle, monoMs(ms));
              break;
            case "reopen":
              input({ kind: "ended" });
              open();
              break;
          }
          expect(stream.pendingBlockCount).toBeLessThanOrEqual(limits.pendingBlocksMax + 1);
        }
        stream.setWritable(true, monoMs(ms));
        for (let round = 0; round < 3; round++) {
          send(1_000);
          ms += limits.snapshotIntervalMsMin;
        }
        expect(receiver.held).toEqual(truth.held);
        expect(receiver.largest).toBeLessThanOrEqual(limits.hashesPerMessage);
        input({ kind: "ack", appliedSeq: receiver.appliedSeq });
        expect(stream.unackedCount).toBe(0);
      }),
      { numRuns: 1_000 },
    );
  });

  const opened = (
    truth = new Truth(),
  ): { stream: JoinStream; drainAll: (ms: number) => JoinOutput[] } => {
    const stream = new JoinStream(truth, limits);
    const drainAll = (ms: number): JoinOutput[] => {
      const out: JoinOutput[] = [];
      for (;;) {
        const output = stream.next({ now: monoMs(ms), wallUnixMs: ms });
        if (output === undefined) return out;
        out.push(output);
      }
    };
    stream.step({ kind: "opened" }, monoMs(0));
    return { stream, drainAll };
  };
  const live = (truth = new Truth()): ReturnType<typeof opened> => {
    const all = opened(truth);
    all.stream.step({ kind: "challenge", challenge }, monoMs(0));
    all.drainAll(0);
    all.stream.step({ kind: "accepted" }, monoMs(0));
    all.drainAll(0);
    all.stream.step({ kind: "ack", appliedSeq: 0 }, monoMs(0));
    return all;
  };

  test("answers the challenge with hello and sends an empty snapshot for an empty engine", () => {
    const { stream, drainAll } = opened();
    expect(drainAll(0)).toEqual([]);
    stream.step({ kind: "challenge", challenge }, monoMs(0));
    expect(drainAll(0)).toEqual([{ kind: "hello", nonce }]);
    stream.step({ kind: "accepted" }, monoMs(1));
    expect(drainAll(1)).toMatchObject([
      { kind: "snapshot", chunk: { last: true, blockCount: 0, baseSeq: 0 } },
    ]);
    expect(stream.phase).toBe("live");
  });

  test.each([
    [{ ...challenge, protocolVersion: 2 }, "protocol_version"],
    [{ ...challenge, hashSeedFingerprint: new Uint8Array(8) }, "hash_seed"],
  ])("refuses a router it cannot agree with (%#)", (wrong, kind) => {
    const { stream } = opened();
    expect(stream.step({ kind: "challenge", challenge: wrong }, monoMs(0))).toMatchObject({
      kind: "refused",
      refusal: { kind },
    });
  });

  test("ends the stream on messages that are not allowed yet and on files it never named", () => {
    expect(opened().stream.step({ kind: "accepted" }, monoMs(0))).toMatchObject({
      kind: "protocol_error",
    });
    expect(live().stream.step({ kind: "challenge", challenge }, monoMs(0))).toMatchObject({
      kind: "protocol_error",
    });
    expect(live().stream.step({ kind: "artifact_request", sha256: "bb" }, monoMs(0))).toMatchObject(
      { kind: "protocol_error" },
    );
  });

  test("keeps its deadlines: challenge, acceptance, a router that does not read, acks", () => {
    const { stream } = opened();
    expect(stream.tick(monoMs(1_000))).toBeUndefined();
    expect(stream.tick(monoMs(1_001))).toEqual({ kind: "timeout", waitedFor: "challenge" });
    const joining = opened();
    joining.stream.step({ kind: "challenge", challenge }, monoMs(500));
    joining.drainAll(500);
    expect(joining.stream.tick(monoMs(1_501))).toEqual({ kind: "timeout", waitedFor: "accepted" });
    const blocked = live().stream;
    blocked.setWritable(false, monoMs(10));
    blocked.setWritable(false, monoMs(1_900));
    expect(blocked.tick(monoMs(2_011))).toEqual({ kind: "timeout", waitedFor: "write" });
    const unacked = live();
    unacked.stream.stored(1, 2);
    unacked.drainAll(10);
    expect(unacked.stream.tick(monoMs(10_000))).toBeUndefined();
    unacked.stream.sampled(idle, monoMs(10_000));
    unacked.drainAll(10_000);
    expect(unacked.stream.tick(monoMs(13_001))).toEqual({ kind: "timeout", waitedFor: "ack" });
    unacked.stream.step({ kind: "ack", appliedSeq: 1 }, monoMs(13_001));
    expect(unacked.stream.tick(monoMs(99_000))).toBeUndefined();
  });

  test("replaces a load sample that could not be sent and tells each change of readiness once", () => {
    const truth = new Truth();
    const { stream, drainAll } = live(truth);
    stream.sampled({ ...idle, running: 1 }, monoMs(10));
    stream.sampled({ ...idle, running: 2 }, monoMs(20));
    expect(drainAll(25)).toMatchObject([{ kind: "load", sample: { running: 2 }, sampleAgeMs: 5 }]);
    truth.ready = false;
    expect(drainAll(30)).toEqual([{ kind: "state", ready: false, reason: "test" }]);
    expect(drainAll(31)).toEqual([]);
  });

  test("tells what an engine at rest shows when it is new, or once a second; all of one that works", () => {
    const { stream, drainAll } = live();
    const toldAt = (times: readonly number[], sample: LoadSample) =>
      times.filter((ms) => {
        stream.sampled(sample, monoMs(ms));
        return drainAll(ms).some(({ kind }) => kind === "load");
      });
    const rest = { ...idle, promptTokens: 7 };
    expect(toldAt([100, 200, 300, 1_000, 1_100, 1_200], rest)).toEqual([100, 1_100]);
    expect(toldAt([1_300, 1_400], { ...rest, finishedRequests: 1 })).toEqual([1_300]);
    expect(toldAt([1_500, 1_600, 1_700], { ...rest, running: 1 })).toEqual([1_500, 1_600, 1_700]);
    expect(toldAt([1_800, 1_900], rest)).toEqual([1_800]);
    expect(toldAt([2_000, 2_100], { ...rest, waiting: 1 })).toEqual([2_000, 2_100]);
  });

  test("sends a file in parts and says goodbye last", () => {
    const { stream, drainAll } = live();
    stream.step({ kind: "artifact_request", sha256: "aa" }, monoMs(0));
    stream.step({ kind: "artifact_request", sha256: "aa" }, monoMs(0));
    expect(
      drainAll(1).map((output) =>
        output.kind === "artifact" ? [output.offset, output.size, output.last] : [],
      ),
    ).toEqual([
      [0, 4, false],
      [4, 4, false],
      [8, 2, true],
    ]);
    stream.step({ kind: "leave", reason: "SIGTERM" }, monoMs(2));
    stream.stored(1, 2);
    expect(drainAll(2)).toEqual([{ kind: "goodbye", reason: "SIGTERM" }]);
  });

  test("begins no more snapshots than its interval allows, however often it is asked", () => {
    const { stream, drainAll } = live();
    const asked = (ms: number): string[] => {
      stream.step({ kind: "resync" }, monoMs(ms));
      return drainAll(ms).map((output) => output.kind);
    };
    expect(asked(20)).toEqual([]);
    expect(stream.wakeAt()).toBe(50);
    expect(asked(50)).toEqual(["snapshot"]);
    expect(asked(51)).toEqual([]);
    expect(drainAll(100).map((output) => output.kind)).toEqual(["snapshot"]);
    expect(stream.phase).toBe("live");
  });

  test("tells the age of the oldest change it carries", () => {
    const { stream, drainAll } = live();
    stream.stored(1, 1);
    stream.eventsApplied(100);
    stream.stored(2, 2);
    stream.eventsApplied(160);
    expect(drainAll(200)).toMatchObject([{ kind: "delta", seq: 1, eventAgeMs: 100 }]);
    stream.removed(2, 2);
    stream.eventsApplied(230);
    expect(drainAll(240)).toMatchObject([{ kind: "delta", seq: 2, eventAgeMs: 10 }]);
  });
});
