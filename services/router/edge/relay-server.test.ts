import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ClientDuplexStream, ServiceError } from "@grpc/grpc-js";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { at, memberFacts, placeInput, routerCore } from "../../../test/support/router-builders.ts";
import { parseCidr } from "../../shared/core/cidr.ts";
import { relayProofMessage } from "../../shared/core/placement-token/relay-proof.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { createChannelCredentials } from "../../shared/edge/grpc-client.ts";
import { createGrpcServer, listen, type GrpcServer } from "../../shared/edge/grpc-server.ts";
import { createKeysFile, loadKeys, type MeshKeys } from "../../shared/edge/keys.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import {
  LegKind,
  LegNotice,
  LegOutcome,
  RelaysClient,
  RelaysService,
  type AttachRequest,
  type AttachResponse,
  type RelayHello,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import { pairDefaults } from "../core/placement/pairs/pair-placer.ts";
import type { RouterCore } from "../core/router-core.ts";
import { routerMetrics } from "../metrics.ts";
import type { PeerLinks } from "./peer-links.ts";
import { RelayService } from "./relay-server.ts";

type Reply = NonNullable<AttachResponse["message"]>;
type Told<Case extends Reply["$case"]> = Extract<Reply, { $case: Case }>["value"];

let folder: string;
let keys: MeshKeys;
let core: RouterCore;
let server: GrpcServer;
let relays: RelayService;
let port = 0;
let endpoints: readonly string[] = [];
let told: Parameters<PeerLinks["broadcast"]>[0][] = [];
const clients: RelaysClient[] = [];
const soon = { timeout: 5_000, interval: 10 };

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-relay-server-"));
  const keysFile = join(folder, "mesh.keys");
  createKeysFile(keysFile);
  keys = loadKeys(keysFile);
  core = routerCore({ pairs: { ...pairDefaults, mode: "always" } });
  endpoints = [];
  told = [];
  const loopback = parseCidr("127.0.0.0/8");
  relays = new RelayService({
    core,
    keys,
    clock: realClock,
    log: pino({ level: "silent" }),
    metrics: createMetrics(routerMetrics).metrics,
    peers: {
      isAlone: false,
      broadcast: (message: Parameters<PeerLinks["broadcast"]>[0]) => told.push(message),
    } as unknown as PeerLinks,
    ads: { setRelays: (list) => (endpoints = list) },
    instance: "r0",
    epoch: 1,
    decisionPrefix: "r0.1",
    allowedCidrs: loopback === undefined ? [] : [loopback],
    settle: () => {
      relays.settle();
    },
  });
  server = createGrpcServer({
    callers: [
      { service: "kvmesh.relay.v1.Relays", allowed: loopback === undefined ? [] : [loopback] },
    ],
    messageBytesMax: 1 << 20,
  });
  server.add(RelaysService, relays.service);
  port = await listen(server.server, "127.0.0.1", 0);
});

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
  relays.close();
  server.server.forceShutdown();
  rmSync(folder, { recursive: true, force: true });
});

/** A relay's end of the stream, by hand. */
class HandRelay {
  readonly replies: Reply[] = [];
  readonly call: ClientDuplexStream<AttachRequest, AttachResponse>;
  error: ServiceError | undefined;

  constructor() {
    const client = new RelaysClient(`127.0.0.1:${String(port)}`, createChannelCredentials());
    clients.push(client);
    this.call = client.attach();
    this.call.on("data", ({ message }: AttachResponse) => {
      if (message !== undefined) this.replies.push(message);
    });
    this.call.on("error", (error: ServiceError) => {
      this.error = error;
    });
  }

  say(message: NonNullable<AttachRequest["message"]>): void {
    this.call.write({ message });
  }

  all<Case extends Reply["$case"]>(name: Case): Told<Case>[] {
    return this.replies.flatMap((r) => (r.$case === name ? [r.value as Told<Case>] : []));
  }

  async hello(over: Partial<RelayHello> = {}, key = keys.join[0]): Promise<void> {
    await vi.waitFor(() => {
      expect(this.all("challenge")).toHaveLength(1);
    }, soon);
    const [challenge] = this.all("challenge");
    const hello = {
      protocolVersion: 1,
      instance: "relay-0",
      epoch: 5n,
      h2Address: "127.0.0.1:9100",
      httpAddress: "127.0.0.1:9101",
      joinKeyId: key?.id ?? "",
      engines: ["vllm"],
      streamsMax: 10,
      ...over,
    };
    const message = relayProofMessage({
      relay: hello.instance,
      epoch: over.proof === undefined ? Number(hello.epoch) : 0,
      h2Address: hello.h2Address,
      httpAddress: hello.httpAddress,
      nonce: challenge?.nonce ?? Buffer.alloc(0),
    });
    const mac = createHmac("sha256", key?.key ?? "");
    const proof = over.proof ?? mac.update(message).digest();
    this.say({ $case: "hello", value: { ...hello, proof } });
  }

  async attach(over: Partial<RelayHello> = {}): Promise<this> {
    await this.hello(over);
    await vi.waitFor(() => {
      expect(this.all("snapshot").at(-1)?.last).toBe(true);
    }, soon);
    return this;
  }
}

const load = (draining: boolean): NonNullable<AttachRequest["message"]> => ({
  $case: "load",
  value: {
    openRequests: 3,
    guardedStreams: 0,
    busyRatio: 0,
    bufferedBytes: 0n,
    draining,
    sentUnixUs: 0n,
  },
});

describe("a relay", () => {
  test("becomes an endpoint, hears the topology and its changes, and leaves with its goodbye", async () => {
    core.admit(memberFacts(0, { epoch: { workerStartMs: 7, engineLife: 2 } }), 1, at(0));
    const relay = await new HandRelay().attach();
    expect(endpoints).toEqual(["127.0.0.1:9100"]);
    const [snapshot] = relay.all("snapshot");
    expect(snapshot).toMatchObject({
      engines: [
        {
          workerId: "w0",
          address: "127.0.0.1:8100",
          workerStartMs: 7n,
          engineLife: 2n,
          engine: "vllm",
          ready: true,
        },
      ],
      relays: [{ instance: "relay-0", h2Address: "127.0.0.1:9100", epoch: 5n }],
      engineCount: 1,
      relayCount: 1,
    });
    expect(told.at(-1)).toMatchObject({ $case: "relay", value: { held: true, goodbye: false } });
    core.admit(memberFacts(1), 2, at(1));
    core.goodbye("w0" as Parameters<typeof core.goodbye>[0]);
    relays.refresh();
    relays.refresh();
    const another = await new HandRelay().attach({
      instance: "relay-1",
      h2Address: "127.0.0.1:9110",
    });
    await vi.waitFor(() => {
      expect(relay.all("delta")).toHaveLength(2);
    }, soon);
    const [first, second] = relay.all("delta");
    expect(first).toMatchObject({ removedEngines: ["w0"], engines: [{ workerId: "w1" }] });
    expect(second).toMatchObject({ relays: [{ instance: "relay-1" }] });
    expect(first?.seq).toBe((snapshot?.baseSeq ?? 0n) + 1n);
    expect(second?.seq).toBe((snapshot?.baseSeq ?? 0n) + 2n);
    expect(another.all("snapshot")[0]?.baseSeq).toBe(second?.seq);
    relays.drain("w1", "test");
    await vi.waitFor(() => {
      expect(relay.all("drain")).toMatchObject([{ workerId: "w1" }]);
    }, soon);
    relay.say({ $case: "resync", value: { expectedSeq: 9n } });
    await vi.waitFor(() => {
      expect(relay.all("snapshot")).toHaveLength(2);
    }, soon);
    relay.say({ $case: "goodbye", value: { reason: "test" } });
    await vi.waitFor(() => {
      expect(endpoints).toEqual(["127.0.0.1:9110"]);
    }, soon);
    expect(told.at(-1)).toMatchObject({ $case: "relay", value: { held: false, goodbye: true } });
  });

  test("that drains is taken out of the cluster, and its streams go on", async () => {
    const relay = await new HandRelay().attach();
    relay.say(load(true));
    await vi.waitFor(() => {
      expect(endpoints).toEqual([]);
    }, soon);
    expect(told.at(-1)).toMatchObject({ value: { draining: true, held: true } });
    relay.say(load(false));
    await vi.waitFor(() => {
      expect(endpoints).toEqual(["127.0.0.1:9100"]);
    }, soon);
    expect(core.relays.get("relay-0")?.reportedOpen).toBe(3);
    expect(relay.error).toBeUndefined();
  });

  test("that is silent loses its lease", async () => {
    const relay = await new HandRelay().attach();
    await vi.waitFor(
      () => {
        relays.tick();
        expect(relay.error?.details).toMatch(/nothing heard for 3000 ms/);
      },
      { timeout: 6_000, interval: 50 },
    );
    expect(core.relays.pick("a", "vllm", 4)).toEqual([]);
    // Proxies keep the address for the grace period: the process may only have lost this stream.
    expect(endpoints).toEqual(["127.0.0.1:9100"]);
  });
});

describe("what is refused", () => {
  const other = { id: "other", key: Buffer.alloc(32, 1) };
  const cases: [string, Partial<RelayHello>, RegExp, typeof other?][] = [
    ["another key", {}, /no valid proof/, other],
    ["a proof of other bytes", { proof: Buffer.alloc(32) }, /no valid proof/],
    [
      "an address outside the ranges",
      { h2Address: "10.0.0.1:80" },
      /h2_address: .*relays\.allowedCidrs/,
    ],
    ["an address that is none", { httpAddress: "relay" }, /http_address: is not ip:port/],
    ["another protocol", { protocolVersion: 2 }, /protocol 2/],
    ["a bad name", { instance: "a b" }, /instance/],
    ["an epoch that is no exact number", { epoch: 2n ** 53n, proof: Buffer.alloc(32) }, /epoch/],
    ["no room for streams", { streamsMax: 0 }, /streams_max/],
    ["an older epoch", { epoch: 4n }, /but 5 is known/],
    [
      "another address in one epoch",
      { h2Address: "127.0.0.1:9999" },
      /is held from 127\.0\.0\.1:9100/,
    ],
  ];
  test.each(cases)("%s", async (_, over, message, key) => {
    await new HandRelay().attach();
    const relay = new HandRelay();
    await relay.hello(over, key);
    await vi.waitFor(() => {
      expect(relay.error?.details).toMatch(message);
    }, soon);
    expect(endpoints).toEqual(["127.0.0.1:9100"]);
  });

  test("anything before hello", async () => {
    const relay = new HandRelay();
    relay.say(load(false));
    await vi.waitFor(() => {
      expect(relay.error?.details).toMatch(/before hello/);
    }, soon);
  });
});

describe("leg notices", () => {
  const notice = (seq: number, decisionId: string, over: Partial<LegNotice> = {}): LegNotice => ({
    ...LegNotice.decode(new Uint8Array(0)),
    seq: BigInt(seq),
    decisionId,
    leg: LegKind.LEG_KIND_DECODE,
    workerId: "w1",
    ended: true,
    outcome: LegOutcome.LEG_OUTCOME_DONE,
    ...over,
  });

  test("close the legs of an own decision, are acknowledged, and count once when they come again", async () => {
    const facts = { kvTransfer: "NixlConnector" };
    core.admit(memberFacts(0, { role: "prefill", ...facts }), 1, realClock.now());
    core.admit(memberFacts(1, { role: "decode", ...facts }), 2, realClock.now());
    const relay = await new HandRelay().attach();
    const [one, two] = ["a", "b"].map((requestId) =>
      core.place(placeInput({ requestId, isPairable: true }), realClock.now()),
    );
    expect([one?.pair?.form, core.book.openCount]).toEqual(["pair", 4]);
    const take = vi.spyOn(core.legEnds, "take");
    const prefill = { leg: LegKind.LEG_KIND_PREFILL, workerId: "w0" };
    const notices = [notice(1, one?.id ?? "", prefill), notice(2, one?.id ?? "", { last: true })];
    relay.say({ $case: "legs", value: { notices } });
    await vi.waitFor(() => {
      expect(relay.all("ack").at(-1)?.appliedSeq).toBe(2n);
    }, soon);
    expect(core.book.openCount).toBe(2);
    // After a reconnect, what was not known to have arrived comes again.
    const again = await new HandRelay().attach();
    again.say({
      $case: "legs",
      value: { notices: [...notices, notice(3, two?.id ?? "", { last: true })] },
    });
    await vi.waitFor(() => {
      expect(again.all("ack").at(-1)?.appliedSeq).toBe(3n);
    }, soon);
    expect([core.book.openCount, take.mock.calls.length]).toEqual([0, 3]);
  });

  test("about a router that the relay does not reach are passed on to all", async () => {
    const relay = await new HandRelay().attach();
    told = [];
    const prefill = { leg: LegKind.LEG_KIND_PREFILL, workerId: "w0" };
    const notices = [notice(1, "r9.7.1", prefill), notice(2, "r9.7.1", { last: true })];
    relay.say({ $case: "legs", value: { notices } });
    await vi.waitFor(() => {
      expect(told).toMatchObject([
        { $case: "closed", value: { decisionId: "r9.7.1#p", workerId: "w0" } },
        { $case: "closed", value: { decisionId: "r9.7.1", workerId: "w1" } },
      ]);
    }, soon);
  });
});
