import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { status, type ServerDuplexStream, type ServiceError } from "@grpc/grpc-js";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { memberNotice, routerCore } from "../../../test/support/router-builders.ts";
import { parseCidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { monoMs } from "../../shared/core/ids.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { createChannelCredentials } from "../../shared/edge/grpc-client.ts";
import {
  createGrpcServer,
  listen,
  toServiceError,
  type GrpcServer,
} from "../../shared/edge/grpc-server.ts";
import { createKeysFile, loadKeys, peerProof, type MeshKeys } from "../../shared/edge/keys.ts";
import {
  PeerClient,
  PeerService as PeerDefinition,
  type PeerChallenge,
  type PeerHello,
  type PeerServer,
  type PeerSnapshot,
  type PeerWelcome,
  type SyncRequest,
  type SyncResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { AccessOutcomes } from "./access-outcomes.ts";
import { PeerLinks } from "./peer-links.ts";
import { welcomeProof } from "./peer-proof.ts";
import { PeerService } from "./peer-server.ts";

const log = pino({ level: "silent" });
/** A reservation's end, as routers tell each other. */
const closing = (decisionId: string) =>
  ({
    $case: "closed",
    value: { decisionId, workerId: "w0", observed: undefined, times: undefined },
  }) as const;

/** A worker that the dialling router holds. */
function heldMember(): PeerSnapshot["members"][number] {
  const { epoch, ...notice } = memberNotice(0);
  const { workerStartMs, engineLife } = epoch;
  return {
    ...notice,
    models: [...notice.models],
    workerStartMs: BigInt(workerStartMs),
    engineLife: BigInt(engineLife),
    role: "",
  };
}

const soon = { timeout: 10_000, interval: 10 };

let folder: string;
let keys: MeshKeys;
let server: GrpcServer;
let address: string;
let links: PeerLinks;
let dropped: number;
let unproven: number;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-peers-"));
  createKeysFile(join(folder, "mesh.keys"));
  keys = loadKeys(join(folder, "mesh.keys"));
  dropped = 0;
  unproven = 0;
});

afterEach(() => {
  links.stop();
  server.server.forceShutdown();
  rmSync(folder, { recursive: true });
});

/** Serves `Peer` and has router r1 dial it. */
async function connect(service: PeerServer, snapshot: PeerSnapshot): Promise<void> {
  server = createGrpcServer({
    callers: [
      {
        service: "kvmesh.router.v1.Peer",
        allowed: [parseCidr("127.0.0.0/8")].flatMap((cidr) => cidr ?? []),
      },
    ],
    messageBytesMax: 16 * 1024 * 1024,
    reflection: false,
  });
  server.add(PeerDefinition, service);
  const port = await listen(server.server, "127.0.0.1", 0);
  address = `127.0.0.1:${port}`;
  links = new PeerLinks({
    addresses: [address],
    instance: "r1",
    epoch: 1,
    keys,
    clock: realClock,
    log,
    blockSizeTokens: 16,
    controlAddress: () => "127.0.0.1:1",
    snapshot: () => snapshot,
    onDropped: (count) => {
      dropped += count;
    },
    onUnproven: () => {
      unproven++;
    },
  });
  links.start();
}

/** Router r0, which r1 dials; `refused` collects what it does not take. */
function peerService(core: RouterCore, clock: Clock, refused: string[] = []): PeerService {
  return new PeerService({
    core,
    outcomes: {} as unknown as AccessOutcomes,
    keys,
    clock,
    log,
    instance: "r0",
    epoch: 2,
    blockSizeTokens: 16,
    allowedCidrs: [parseCidr("127.0.0.0/8")].flatMap((cidr) => cidr ?? []),
    onRefused: (what) => {
      refused.push(what);
    },
    settle: () => {
      core.takeEffects();
    },
  });
}

/** What a serving router says first. */
function challenge(call: ServerDuplexStream<SyncRequest, SyncResponse>): void {
  const value = { instance: "r0", nonce: Buffer.alloc(16) };
  call.write({ message: { $case: "challenge", value } });
}

/** What router r0 shows a caller, `over` what is not as it should be. */
function welcomeOf(
  { instance: caller, nonce }: PeerHello,
  over: { readonly key?: Buffer; readonly caller?: string; readonly nonce?: Buffer } = {},
): PeerWelcome {
  const [named] = keys.peer;
  const who = { instance: "r0", epoch: 1n };
  const key = over.key ?? named?.key ?? Buffer.alloc(32);
  const proof = welcomeProof(key, { ...who, caller, nonce, ...over });
  return { ...who, proof, keyId: named?.id ?? "" };
}

/** A peer that reads only when told to. */
class LazyPeer {
  readonly seen: { readonly seq: number; readonly kind: string }[] = [];
  /** Decisions that it heard to be closed. */
  readonly closings: string[] = [];
  call: ServerDuplexStream<SyncRequest, SyncResponse> | undefined;

  /** Its answer to a hello, proven unless told otherwise. */
  welcome = (hello: PeerHello): PeerWelcome => welcomeOf(hello);

  get service(): PeerServer {
    return {
      sync: (call) => {
        this.call = call;
        challenge(call);
        call.on("data", ({ seq, message }: SyncRequest) => {
          if (message?.$case === "hello") {
            call.write({ message: { $case: "welcome", value: this.welcome(message.value) } });
            return;
          }
          this.seen.push({ seq: Number(seq), kind: message?.$case ?? "" });
          if (message?.$case === "closed") this.closings.push(message.value.decisionId);
          if (message?.$case !== "batch") return;
          for (const { event } of message.value.events) {
            if (event?.$case === "closed") this.closings.push(event.value.decisionId);
          }
        });
        call.on("error", () => undefined);
      },
    };
  }
}

test("what waits for a peer that does not read is bounded, dropped as a whole, and replaced by a snapshot", async () => {
  const peer = new LazyPeer();
  await connect(peer.service, { members: [], reservations: [], relays: [] });
  await vi.waitFor(() => {
    expect(peer.seen.map((one) => one.kind)).toEqual(["snapshot"]);
  }, soon);
  peer.call?.pause();
  const broadcast = (): void => {
    links.broadcast(closing("d".repeat(1_000)));
  };
  // More than the socket's buffers and the queue hold together: 10,000 wait, and the one too many drops them.
  let sent = 0;
  while (dropped === 0 && sent < 60_000) {
    broadcast();
    sent++;
    if (sent % 500 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  expect(dropped).toBe(10_000);
  expect(sent).toBeLessThan(60_000);
  // Nothing more is kept for it: what it misses is in the snapshot to come.
  for (let i = 0; i < 20_000; i++) broadcast();
  expect(dropped).toBe(10_000);
  peer.call?.resume();
  await vi.waitFor(() => {
    links.tick();
    expect(peer.seen.filter((one) => one.kind === "snapshot").length).toBe(2);
  }, soon);
  // No gap in the numbers: what was dropped had none yet.
  expect(peer.seen.map((one) => one.seq)).toEqual(peer.seen.map((_, index) => index + 1));
  expect(peer.seen.length).toBeLessThanOrEqual(sent - dropped + 1);
  // And it goes on.
  broadcast();
  await vi.waitFor(() => {
    expect(peer.seen.at(-1)?.kind).toBe("closed");
  }, soon);
});

test("events of the same moment share a message, in order, and nothing overtakes them", async () => {
  const peer = new LazyPeer();
  await connect(peer.service, { members: [], reservations: [], relays: [] });
  await vi.waitFor(() => {
    expect(peer.seen.length).toBe(1);
  }, soon);
  for (let i = 0; i < 300; i++) links.broadcast(closing(String(i)));
  links.broadcast({ $case: "heartbeat", value: {} });
  links.broadcast(closing("alone"));
  await vi.waitFor(() => {
    expect(peer.seen.map((one) => one.kind)).toEqual([
      "snapshot",
      "batch",
      "batch",
      "heartbeat",
      "closed",
    ]);
  }, soon);
  const ids = peer.closings;
  expect(ids).toEqual([...Array.from({ length: 300 }, (_, i) => String(i)), "alone"]);
});

test("a message to a peer that is not there is neither kept nor sent later", async () => {
  const peer = new LazyPeer();
  await connect(peer.service, { members: [], reservations: [], relays: [] });
  links.broadcast(closing("too early"));
  expect(links.sendTo("r0", closing("too early"))).toBe(false);
  await vi.waitFor(() => {
    expect(peer.seen.map((one) => one.kind)).toEqual(["snapshot"]);
  }, soon);
  expect(links.sendTo("r0", closing("known"))).toBe(true);
  expect(links.sendTo("r7", closing("other"))).toBe(false);
  await vi.waitFor(() => {
    expect(peer.seen.map((one) => one.kind)).toEqual(["snapshot", "closed"]);
  }, soon);
});

test("a peer that is silent for longer than its deadline is lost, and its members are given up a second later", async () => {
  let aheadMs = 0;
  const clock: Clock = {
    ...realClock,
    now: () => monoMs(realClock.now() + aheadMs),
  };
  const core: RouterCore = routerCore();
  const service = peerService(core, clock);
  await connect(service.service, { members: [heldMember()], reservations: [], relays: [] });
  await vi.waitFor(() => {
    expect(service.syncedCount).toBe(1);
  }, soon);
  expect(core.members.size).toBe(1);
  const lost = vi.spyOn(core, "routerLost");
  aheadMs += 2_000;
  service.tick();
  expect(service.states()).toMatchObject([{ instance: "r1", state: "serving" }]);
  aheadMs += 600;
  service.tick();
  expect(service.states()).toMatchObject([{ instance: "r1", state: "lost" }]);
  expect([service.syncedCount, service.lostCount]).toEqual([0, 1]);
  expect(lost).not.toHaveBeenCalled();
  aheadMs += 1_100;
  // Unless it has come back by then: it dials again as soon as its stream has ended.
  links.stop();
  service.tick();
  expect(lost).toHaveBeenCalledWith("r1", expect.anything());
});

test("a silent peer that dials again is synced again without having been given up", async () => {
  let aheadMs = 0;
  const clock: Clock = { ...realClock, now: () => monoMs(realClock.now() + aheadMs) };
  const core = routerCore();
  const service = peerService(core, clock);
  await connect(service.service, { members: [heldMember()], reservations: [], relays: [] });
  await vi.waitFor(() => {
    expect(service.syncedCount).toBe(1);
  }, soon);
  const lost = vi.spyOn(core, "routerLost");
  aheadMs += 2_600;
  service.tick();
  expect(service.lostCount).toBe(1);
  await vi.waitFor(() => {
    expect(service.syncedCount).toBe(1);
  }, soon);
  aheadMs += 2_000;
  service.tick();
  expect(lost).not.toHaveBeenCalled();
  expect(core.members.size).toBe(1);
});

test("a peer's bad notices are counted and left out; its good ones are taken", async () => {
  const core = routerCore();
  const refused: string[] = [];
  const service = peerService(core, realClock, refused);
  const good = heldMember();
  const bad: Partial<typeof good>[] = [
    { endpoint: "not an endpoint" },
    { endpoint: "127.0.0.1:99999" },
    { endpoint: "10.0.0.1:80" },
    { endpoint: "example.org:80" },
    { workerId: "a b" },
    { pool: "" },
    { models: [] },
    { models: ["m".repeat(10_000)] },
    { workerStartMs: 2n ** 60n },
  ];
  const members = [...bad.map((over) => ({ ...good, workerId: "w9", ...over })), good];
  await connect(service.service, { members, reservations: [], relays: [] });
  await vi.waitFor(() => {
    expect(service.syncedCount).toBe(1);
  }, soon);
  expect([...core.members.all()].map((m) => m.workerId)).toEqual([good.workerId]);
  expect(refused).toEqual(bad.map(() => "notice"));
  links.broadcast({ $case: "member", value: { ...good, workerId: "w8", endpoint: "8.8.8.8:53" } });
  await vi.waitFor(() => {
    expect(refused.length).toBe(bad.length + 1);
  }, soon);
  expect(core.members.size).toBe(1);
  expect(service.syncedCount).toBe(1);
});

test("a lost peer is forgotten after a minute, and with it the epoch that an older one is refused by", async () => {
  let aheadMs = 0;
  const clock: Clock = { ...realClock, now: () => monoMs(realClock.now() + aheadMs) };
  const service = peerService(routerCore(), clock);
  await connect(service.service, { members: [], reservations: [], relays: [] });
  await vi.waitFor(() => {
    expect(service.syncedCount).toBe(1);
  }, soon);
  links.stop();
  await vi.waitFor(() => {
    expect(service.lostCount).toBe(1);
  }, soon);
  aheadMs += 50_000;
  service.tick();
  expect(service.states()).toMatchObject([{ instance: "r1", state: "lost" }]);
  aheadMs += 11_000;
  service.tick();
  expect(service.states()).toEqual([]);
});

test("streams of peers are bounded, and one that ended makes room", async () => {
  const refused: string[] = [];
  const service = peerService(routerCore(), realClock, refused);
  await connect(service.service, { members: [], reservations: [], relays: [] });
  await vi.waitFor(() => {
    expect(service.syncedCount).toBe(1);
  }, soon);
  const client = new PeerClient(address, createChannelCredentials());
  try {
    const open = () => client.sync().on("error", () => undefined);
    const calls = Array.from({ length: 64 }, open);
    await vi.waitFor(() => {
      expect(refused).toEqual(["hello"]);
    }, soon);
    calls[0]?.cancel();
    await new Promise((resolve) => setTimeout(resolve, 100));
    open();
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(refused).toEqual(["hello"]);
    // None of the 63 says hello: they are ended, and the peer that did stays.
    await vi.waitFor(() => {
      expect(refused.length).toBe(64);
    }, soon);
    expect(service.syncedCount).toBe(1);
  } finally {
    client.close();
  }
}, 15_000);

test("a refusal is told at warn, once for its reason", async () => {
  const warned = vi.spyOn(log, "warn");
  try {
    let hellos = 0;
    const refuse: PeerServer = {
      sync: (call) => {
        call.on("error", () => undefined);
        challenge(call);
        call.on("data", () => {
          hellos++;
          const mesh = new MeshError("unauthenticated", "no valid proof");
          call.emit("error", toServiceError(mesh));
        });
      },
    };
    await connect(refuse, { members: [], reservations: [], relays: [] });
    await vi.waitFor(() => {
      expect(hellos).toBeGreaterThan(2);
    }, soon);
    const reasons = warned.mock.calls.map(([what]) => what as object);
    const reason = expect.stringContaining("no valid proof") as string;
    expect(reasons).toMatchObject([{ event: "peer_refuses", reason }]);
  } finally {
    warned.mockRestore();
  }
});

test("a router tells its state to nobody who does not prove himself in turn", async () => {
  const wrong: Parameters<typeof welcomeOf>[1][] = [
    { key: Buffer.alloc(32, 9) },
    // A welcome of another stream, or for another router.
    { nonce: Buffer.alloc(16, 7) },
    { caller: "r9" },
  ];
  const warned = vi.spyOn(log, "warn");
  const peer = new LazyPeer();
  let dialled = 0;
  peer.welcome = (hello) => welcomeOf(hello, wrong[dialled++ % wrong.length]);
  try {
    await connect(peer.service, { members: [heldMember()], reservations: [], relays: [] });
    await vi.waitFor(() => {
      expect(unproven).toBeGreaterThan(wrong.length);
    }, soon);
    expect(peer.seen).toEqual([]);
    expect(links.sendTo("r0", closing("secret"))).toBe(false);
    // Told once, however often it is dialled.
    expect(warned.mock.calls.map(([what]) => what)).toMatchObject([{ event: "peer_unproven" }]);
    peer.welcome = (hello) => welcomeOf(hello);
    await vi.waitFor(() => {
      expect(peer.seen.map((one) => one.kind)).toEqual(["snapshot"]);
    }, soon);
  } finally {
    warned.mockRestore();
  }
});

/** Dials like router r2 and answers the challenge with what `hello` makes of it; returns the call's first answer or error. */
function dial(
  client: PeerClient,
  hello: (challenge: PeerChallenge) => Partial<PeerHello>,
): Promise<string> {
  return new Promise((resolve) => {
    const call = client.sync();
    call.on("error", (error: ServiceError) => {
      resolve(`${status[error.code]}: ${error.details}`);
    });
    call.on("data", ({ message }: SyncResponse) => {
      if (message?.$case !== "challenge") {
        resolve(message?.$case ?? "");
        call.cancel();
        return;
      }
      const value = {
        protocolVersion: 1,
        instance: "r2",
        epoch: 7n,
        proof: Buffer.alloc(32),
        keyId: keys.peer[0]?.id ?? "",
        controlAddress: "127.0.0.1:1",
        blockSizeTokens: 16,
        nonce: Buffer.alloc(16, 3),
        ...hello(message.value),
      };
      call.write({ seq: 0n, message: { $case: "hello", value } });
    });
  });
}

test("a router proves itself by the peer key, for one stream to one router", async () => {
  const service = peerService(routerCore(), realClock);
  await connect(service.service, { members: [], reservations: [], relays: [] });
  const client = new PeerClient(address, createChannelCredentials());
  const proven = (key: Buffer | undefined, challenged: PeerChallenge, over = {}): Buffer =>
    peerProof(key ?? Buffer.alloc(32), {
      instance: "r2",
      epoch: 7n,
      challenger: challenged.instance,
      nonce: challenged.nonce,
      ...over,
    });
  const key = keys.peer[0]?.key;
  try {
    let recorded: Buffer = Buffer.alloc(0);
    const good = await dial(client, (challenged) => {
      expect(challenged.nonce).toHaveLength(16);
      recorded = proven(key, challenged);
      return { proof: recorded };
    });
    expect(good).toBe("welcome");
    const noProof =
      /^UNAUTHENTICATED: router r2 has no valid proof; give all routers the same peer/;
    // What was said on another stream is good for nothing.
    expect(await dial(client, () => ({ proof: recorded }))).toMatch(noProof);
    // Every worker has the join key.
    const join = keys.join[0];
    expect(
      await dial(client, (c) => ({ proof: proven(join?.key, c), keyId: join?.id ?? "" })),
    ).toMatch(noProof);
    expect(await dial(client, (c) => ({ proof: proven(Buffer.alloc(32, 9), c) }))).toMatch(noProof);
    expect(await dial(client, (c) => ({ proof: proven(key, c, { epoch: 6n }) }))).toMatch(noProof);
    // Nor can a proof for one router be passed on to another.
    expect(await dial(client, (c) => ({ proof: proven(key, c, { challenger: "r9" }) }))).toMatch(
      noProof,
    );
  } finally {
    client.close();
  }
});

test("a newer stream of a router ends the one before, whose messages count no more", async () => {
  const service = peerService(routerCore(), realClock);
  await connect(service.service, { members: [], reservations: [], relays: [] });
  const client = new PeerClient(address, createChannelCredentials());
  const [named] = keys.peer;
  const open = (): { readonly welcomed: Promise<void>; readonly ended: Promise<string> } => {
    const call = client.sync();
    const ended = new Promise<string>((resolve) => {
      call.on("error", ({ details }: ServiceError) => {
        resolve(details);
      });
    });
    const welcomed = new Promise<void>((resolve) => {
      call.on("data", ({ message }: SyncResponse) => {
        if (message?.$case === "welcome") resolve();
        if (message?.$case !== "challenge") return;
        const { instance: challenger, nonce } = message.value;
        const who = { instance: "r2", epoch: 7n };
        const proof = peerProof(named?.key ?? Buffer.alloc(32), { ...who, challenger, nonce });
        const shared = { protocolVersion: 1, controlAddress: "127.0.0.1:1", blockSizeTokens: 16 };
        const value = { ...who, ...shared, proof, keyId: named?.id ?? "", nonce: Buffer.alloc(16) };
        call.write({ seq: 0n, message: { $case: "hello", value } });
      });
    });
    return { welcomed, ended };
  };
  try {
    const older = open();
    await older.welcomed;
    const newer = open();
    expect(await older.ended).toBe("a newer stream of router r2 took over");
    await newer.welcomed;
    expect(service.states().find(({ instance }) => instance === "r2")?.state).toBe("syncing");
  } finally {
    client.close();
  }
});
