/** The server on real sockets: TLS, Unix sockets, limits of connections, clients that do not read. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import {
  Client,
  credentials,
  status,
  type ChannelCredentials,
  type ServiceError,
} from "@grpc/grpc-js";
import { afterEach, describe, expect, test } from "vitest";
import type { H2GrpcOptions, H2GrpcServer } from "../../services/shared/edge/h2/h2-grpc-server.ts";
import {
  block,
  data,
  flags,
  frame,
  grpcMessage,
  headers,
  preface,
  requestFields,
  settings,
  types,
  windowUpdate,
} from "../support/h2-frames.ts";
import { RawH2Client } from "../support/h2-raw-client.ts";
import { echoPath, holdPath, startEchoServer, until, type EchoLog } from "../support/h2-servers.ts";

const fixtures = join(import.meta.dirname, "../fixtures/h2");
const cert = readFileSync(join(fixtures, "tls-cert.pem"));
const key = readFileSync(join(fixtures, "tls-key.pem"));
const same = (bytes: Buffer): Buffer => bytes;

let server: H2GrpcServer;
let port: number;
let log: EchoLog;
const cleanups: (() => void)[] = [];

async function start(options: Partial<H2GrpcOptions> = {}): Promise<void> {
  ({ server, port, log } = await startEchoServer(options));
}

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) cleanup();
  await server.close();
});

function clientOf(target: string, secure: ChannelCredentials): Client {
  const client = new Client(target, secure, {
    "grpc.max_receive_message_length": 16 << 20,
    "grpc.use_local_subchannel_pool": 1,
  });
  cleanups.push(() => {
    client.close();
  });
  return client;
}

function echo(client: Client, message: Buffer): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const call = client.makeBidiStreamRequest(echoPath, same, same);
    const parts: Buffer[] = [];
    call.on("data", (answer: Buffer) => parts.push(answer));
    call.on("error", reject);
    call.on("end", () => {
      resolve(Buffer.concat(parts));
    });
    call.write(message);
    call.end();
  });
}

describe("TLS", () => {
  test("carries gRPC calls of every size, many at once", async () => {
    await start({ tls: { cert, key } });
    const client = clientOf(`localhost:${port.toString()}`, credentials.createSsl(cert));
    const sizes = [
      0,
      1,
      16_384,
      100_000,
      3_000_000,
      ...Array.from({ length: 50 }, (_, i) => i * 777),
    ];
    const answers = await Promise.all(sizes.map((size) => echo(client, Buffer.alloc(size, size))));
    answers.forEach((answer, i) => {
      expect(answer.equals(Buffer.alloc(sizes[i]!, sizes[i]))).toBe(true);
    });
    expect(server.counts()).toMatchObject({ connections: 1, bufferedBytes: 0, refused: {} });
  });

  test("asks for h2 by ALPN: without it the connection is closed and counted", async () => {
    await start({ tls: { cert, key } });
    const socket = connectTls({ port, host: "127.0.0.1", ca: cert, servername: "localhost" });
    socket.on("error", () => undefined);
    await new Promise((resolve) => socket.on("close", resolve));
    await until(() => server.counts().closed.no_alpn === 1);
    const other = connectTls({
      port,
      host: "127.0.0.1",
      ca: cert,
      servername: "localhost",
      ALPNProtocols: ["http/1.1"],
    });
    const error = await new Promise<NodeJS.ErrnoException>((resolve) => other.on("error", resolve));
    expect(error.code).toMatch(/NO_APPLICATION_PROTOCOL/);
    await until(() => server.counts().closed.tls_failed === 1);
    expect(server.counts().connectionsTotal).toBe(0);
  });

  test("takes no cleartext", async () => {
    await start({ tls: { cert, key } });
    const socket = connectTcp(port, "127.0.0.1");
    socket.on("error", () => undefined);
    socket.write(preface);
    await new Promise((resolve) => socket.on("close", resolve));
    await until(() => server.counts().closed.tls_failed === 1);
  });

  test("takes a client certificate only when one of the given authorities signed it", async () => {
    await start({ tls: { cert, key, ca: cert, requestCert: true, rejectUnauthorized: true } });
    const target = `localhost:${port.toString()}`;
    const known = clientOf(target, credentials.createSsl(cert, key, cert));
    expect(await echo(known, Buffer.from("hello"))).toEqual(Buffer.from("hello"));
    const unknown = clientOf(target, credentials.createSsl(cert));
    const failed = await echo(unknown, Buffer.from("hello")).catch((error: unknown) => error);
    expect((failed as ServiceError).code).toBe(status.UNAVAILABLE);
  });

  test("drains like cleartext", async () => {
    await start({ tls: { cert, key } });
    const client = clientOf(`localhost:${port.toString()}`, credentials.createSsl(cert));
    await echo(client, Buffer.from("hello"));
    await server.drain(5_000);
    expect(server.counts()).toMatchObject({ connections: 0, closed: { drained: 1 } });
  });
});

describe("a Unix socket", () => {
  test("carries calls, whose peer is unix", async () => {
    const peers = new Set<string>();
    await start({
      allow: (_, peer) => {
        peers.add(peer);
        return true;
      },
    });
    const folder = mkdtempSync(join(tmpdir(), "kvmesh-h2-"));
    cleanups.push(() => {
      rmSync(folder, { recursive: true });
    });
    const path = join(folder, "grpc.sock");
    await server.listenUnix(path);
    const client = clientOf(`unix:${path}`, credentials.createInsecure());
    const message = Buffer.alloc(300_000, 7);
    expect((await echo(client, message)).equals(message)).toBe(true);
    expect([...peers]).toEqual(["unix"]);
    await server.close();
    expect(existsSync(path)).toBe(false);
  });
});

describe("listening", () => {
  test("on a port that is taken is refused", async () => {
    await start();
    await expect(server.listen("127.0.0.1", port)).rejects.toMatchObject({ code: "EADDRINUSE" });
  });
});

describe("node:http2 as the client", () => {
  test("gets answers on many connections at once, whose reads share one buffer", async () => {
    await start();
    const sessions = Array.from({ length: 8 }, () =>
      connectHttp2(`http://127.0.0.1:${port.toString()}`),
    );
    const call = (session: (typeof sessions)[number], body: Buffer): Promise<Buffer> =>
      new Promise((resolve, reject) => {
        const request = session.request({
          ":method": "POST",
          ":path": echoPath,
          "content-type": "application/grpc+proto",
          te: "trailers",
        });
        const parts: Buffer[] = [];
        request.on("data", (chunk: Buffer) => parts.push(chunk));
        request.on("error", reject);
        request.on("trailers", (trailers) => {
          if (trailers["grpc-status"] !== "0") reject(new Error(JSON.stringify(trailers)));
        });
        request.on("end", () => {
          resolve(Buffer.concat(parts));
        });
        request.end(grpcMessage(body));
      });
    await Promise.all(
      sessions.flatMap((session, i) =>
        Array.from({ length: 20 }, async (_, j) => {
          const body = Buffer.alloc(j * 9_973, `${i.toString()}-${j.toString()} `);
          expect((await call(session, body)).equals(grpcMessage(body))).toBe(true);
        }),
      ),
    );
    for (const session of sessions) session.close();
    await until(() => server.counts().connections === 0);
    expect(log.closes).toEqual({ ended: 160, reset: 0, connection_lost: 0 });
  });
});

describe("connections", () => {
  test("above the limit are closed at once, those within go on", async () => {
    await start({ limits: { connectionsMax: 2 } });
    const first = await RawH2Client.open(port);
    const second = await RawH2Client.open(port);
    const third = await RawH2Client.connect(port);
    third.send(preface, settings());
    expect(await third.next(() => true)).toBeUndefined();
    expect(await first.isAlive()).toBe(true);
    expect(server.counts()).toMatchObject({ connections: 2, closed: { too_many_connections: 1 } });
    first.close();
    await until(() => server.counts().connections === 1);
    const fourth = await RawH2Client.open(port);
    expect(await fourth.isAlive()).toBe(true);
    for (const client of [second, third, fourth]) client.close();
  });

  test("without a preface in time are closed", async () => {
    await start({ limits: { prefaceMsMax: 300 } });
    const client = await RawH2Client.connect(port);
    client.send(preface.subarray(0, 5));
    expect(await client.goawayCode()).toBe(1);
    client.close();
    await until(() => server.counts().closed.preface_timeout === 1);
  });

  test("survive a process that was blocked longer than their deadlines", async () => {
    await start({ limits: { keepaliveMs: 300, keepaliveTimeoutMs: 300 } });
    const client = await RawH2Client.open(port);
    expect(await client.isAlive()).toBe(true);
    const asked = await client.next((f) => f.type === types.ping && f.flags === 0);
    client.send(frame(types.ping, flags.ack, 0, asked!.payload));
    const blockedUntil = performance.now() + 1_500;
    while (performance.now() < blockedUntil);
    expect(await client.isAlive()).toBe(true);
    client.close();
  });

  test("that vanish end their calls", async () => {
    await start();
    const client = await RawH2Client.open(port);
    client.send(
      headers(1, block(requestFields(holdPath))),
      headers(3, block(requestFields(holdPath))),
    );
    await until(() => log.calls === 2);
    client.close();
    await until(() => log.closes.connection_lost === 2);
    expect(server.counts()).toMatchObject({
      connections: 0,
      streams: 0,
      closed: { socket_closed: 1 },
    });
  });

  test("are told how they failed in GOAWAY, whose reason is counted", async () => {
    const closed: string[] = [];
    await start({ onClosed: (reason, peer) => closed.push(`${reason} ${peer}`) });
    const client = await RawH2Client.open(port);
    client.send(frame(types.data, 0, 0, [1]));
    const goaway = await client.next((f) => f.type === types.goaway);
    expect(goaway?.payload.subarray(8).toString()).toBe("DATA on stream 0");
    await client.next(() => false);
    client.close();
    await until(() => closed.length === 1);
    expect(closed).toEqual(["protocol_error 127.0.0.1"]);
  });
});

describe("a client that does not read", () => {
  const hugeWindow = [settings([4, 0x7fff_ffff]), windowUpdate(0, 0x7000_0000)];

  test("holds a bounded part of its answers in memory, and is closed when it goes on", async () => {
    const streamQueueBytesMax = 1 << 20;
    await start({
      limits: {
        streamQueueBytesMax,
        outputBytesHigh: 256 << 10,
        messageBytesMax: 1 << 20,
        sendStallMsMax: 1_500,
      },
    });
    const client = await RawH2Client.open(port);
    client.pause();
    client.send(...hugeWindow, headers(1, block(requestFields(holdPath))));
    const message = grpcMessage(Buffer.alloc(16_000));
    let most = 0;
    for (let i = 0; i < 2_000; i++) {
      client.send(data(1, message));
      most = Math.max(most, server.counts().bufferedBytes);
      if (i % 20 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    // The queue's buffer is a power of two and may double while it moves.
    expect(most).toBeLessThanOrEqual(4 * streamQueueBytesMax);
    await until(() => server.counts().connections === 0, 10_000);
    expect(server.counts()).toMatchObject({ streams: 0, bufferedBytes: 0 });
    expect(Object.keys(server.counts().closed)).toEqual(["write_stalled"]);
    client.close();
  });

  test("is not read from either while its answers fill the socket, and loses none", async () => {
    await start({ limits: { outputBytesHigh: 32 << 10, concurrentStreamsMax: 8 } });
    const client = await RawH2Client.open(port);
    client.pause();
    const calls = 15_000;
    // A path of 1,000 octets, which comes back in the text of the answer: more than the system's buffers hold.
    const path = Buffer.alloc(1_000, "/unknown");
    const length = Buffer.from([0x04, 0x7f, 0xe9, 0x06]);
    const fields = requestFields("").filter(([name]) => name !== ":path");
    const request = Buffer.concat([length, path, block(fields)]);
    for (let i = 0; i < calls; i += 100) {
      client.send(
        ...Array.from({ length: 100 }, (_, j) => headers((i + j) * 2 + 1, request, flags.end)),
      );
    }
    let before = -1;
    let stillSince = performance.now();
    await until(() => {
      const answered = server.counts().refused.unknown_method ?? 0;
      if (answered !== before) stillSince = performance.now();
      before = answered;
      return answered > 0 && performance.now() - stillSince > 500;
    }, 15_000);
    expect(before).toBeLessThan(calls);
    client.resume();
    const { trailers } = await client.answer(calls * 2 - 1);
    expect(trailers.length).toBeGreaterThan(0);
    expect(server.counts().refused).toEqual({ unknown_method: calls });
    client.close();
  });

  test("gets everything, in order, when it reads again", async () => {
    await start({ limits: { outputBytesHigh: 64 << 10 } });
    const client = await RawH2Client.open(port);
    client.pause();
    client.send(...hugeWindow, headers(1, block(requestFields(echoPath))));
    const sent: Buffer[] = [];
    for (let i = 0; i < 300; i++) {
      const message = grpcMessage(Buffer.alloc(16_000, i));
      sent.push(message);
      client.send(data(1, message, i === 299 ? flags.end : 0));
    }
    await until(() => log.halfCloses === 1);
    expect(server.counts().bufferedBytes).toBeGreaterThan(0);
    client.resume();
    const { body } = await client.answer(1);
    expect(body.equals(Buffer.concat(sent))).toBe(true);
    await until(() => server.counts().bufferedBytes === 0);
    client.close();
  });
});
