import {
  Client,
  compressionAlgorithms,
  credentials,
  Metadata,
  status,
  type ServiceError,
} from "@grpc/grpc-js";
import { afterEach, describe, expect, test } from "vitest";
import { GrpcHealth, servingStatus } from "../../services/shared/edge/h2/grpc-health.ts";
import type { H2GrpcOptions, H2GrpcServer } from "../../services/shared/edge/h2/h2-grpc-server.ts";
import { echoPath, holdPath, startEchoServer, until, type EchoLog } from "../support/h2-servers.ts";

const same = (bytes: Buffer): Buffer => bytes;
const channelOptions = {
  "grpc.max_receive_message_length": 64 << 20,
  "grpc.use_local_subchannel_pool": 1,
};

let server: H2GrpcServer;
let client: Client;
let log: EchoLog;

async function start(options: Partial<H2GrpcOptions> = {}): Promise<void> {
  const started = await startEchoServer(options);
  ({ server, log } = started);
  const target = `127.0.0.1:${started.port.toString()}`;
  client = new Client(target, credentials.createInsecure(), channelOptions);
}

afterEach(async () => {
  client.close();
  await server.close();
});

/** A message whose every part differs, so that a swap or a hole shows. */
function message(bytes: number, seed: number): Buffer {
  const buffer = Buffer.allocUnsafe(bytes);
  let state = seed * 2_654_435_761 + 1;
  for (let i = 0; i < bytes; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    buffer[i] = state >>> 24;
  }
  return buffer;
}

/** Sends the messages on one call and collects the answers. */
function echo(messages: readonly Buffer[], path = echoPath): Promise<Buffer[]> {
  return new Promise((resolve, reject) => {
    const call = client.makeBidiStreamRequest(path, same, same);
    const answers: Buffer[] = [];
    call.on("data", (answer: Buffer) => answers.push(answer));
    call.on("error", reject);
    call.on("end", () => {
      resolve(answers);
    });
    for (const one of messages) call.write(one);
    call.end();
  });
}

function unary(path: string, request: Buffer): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(path, same, same, request, (error, answer) => {
      if (error !== null) reject(error);
      else resolve(answer ?? Buffer.alloc(0));
    });
  });
}

function codeOf(promise: Promise<unknown>): Promise<number | string> {
  return promise.then(
    () => "no error",
    (error: unknown) => (error as ServiceError).code,
  );
}

describe("a grpc-js client", () => {
  test.each([
    0, 1, 4, 5, 6, 100, 16_378, 16_379, 16_380, 65_535, 65_536, 262_144, 1_048_577, 3_000_000,
  ])("gets a message of %i bytes back", async (bytes) => {
    await start();
    const sent = message(bytes, bytes);
    const answers = await echo([sent]);
    expect(answers).toHaveLength(1);
    expect(answers[0]!.equals(sent)).toBe(true);
  });

  test("gets the messages of 200 parallel streams back, each on its own", async () => {
    await start();
    const sent = Array.from({ length: 200 }, (_, i) => [
      message(i * 97, i),
      message(i * 1_013, i + 1),
      message(3, i + 2),
    ]);
    const answers = await Promise.all(sent.map((messages) => echo(messages)));
    for (const [i, messages] of sent.entries()) {
      expect(Buffer.concat(answers[i]!).equals(Buffer.concat(messages))).toBe(true);
    }
    expect(log).toEqual({
      calls: 200,
      halfCloses: 200,
      closes: { ended: 200, reset: 0, connection_lost: 0 },
    });
    expect(server.counts()).toMatchObject({ streams: 0, bufferedBytes: 0, refused: {} });
  });

  test("gets more streams than allowed at once, the rest after the first", async () => {
    await start({ limits: { concurrentStreamsMax: 8 } });
    const sent = Array.from({ length: 100 }, (_, i) => message(20_000, i));
    const answers = await Promise.all(sent.map((one) => echo([one])));
    answers.forEach((answer, i) => {
      expect(answer[0]!.equals(sent[i]!)).toBe(true);
    });
  });

  test("gets UNIMPLEMENTED for a method that is not served", async () => {
    await start();
    expect(await codeOf(unary("/kvmesh.test.Echo/Other", Buffer.alloc(3)))).toBe(
      status.UNIMPLEMENTED,
    );
    expect(server.counts().refused).toEqual({ unknown_method: 1 });
  });

  test("gets PERMISSION_DENIED when it is not on the allow-list", async () => {
    const asked: string[] = [];
    await start({
      allow: (path, peer) => {
        asked.push(`${path} ${peer}`);
        return false;
      },
    });
    await expect(echo([Buffer.alloc(3)])).rejects.toMatchObject({
      code: status.PERMISSION_DENIED,
      details: `caller 127.0.0.1 is not on the allow-list of ${echoPath.slice(1, echoPath.lastIndexOf("/"))}`,
    });
    expect(asked).toEqual([`${echoPath} 127.0.0.1`]);
    expect(log.calls).toBe(0);
  });

  test("gets RESOURCE_EXHAUSTED for a message above the limit, and the handler a reset", async () => {
    await start({ limits: { messageBytesMax: 1_000 } });
    expect((await echo([Buffer.alloc(1_000)]))[0]).toHaveLength(1_000);
    await expect(echo([Buffer.alloc(1_001)])).rejects.toMatchObject({
      code: status.RESOURCE_EXHAUSTED,
      details: "message of 1001 bytes is above 1000",
    });
    expect(log.closes).toEqual({ ended: 1, reset: 1, connection_lost: 0 });
    expect(server.counts().refused).toEqual({ message_too_large: 1 });
  });

  test("gets UNIMPLEMENTED for a compressed message", async () => {
    await start();
    client.close();
    client = new Client(client.getChannel().getTarget(), credentials.createInsecure(), {
      ...channelOptions,
      "grpc.default_compression_algorithm": compressionAlgorithms.gzip,
    });
    expect(await codeOf(echo([Buffer.alloc(5_000)]))).toBe(status.UNIMPLEMENTED);
    expect(server.counts().refused).toEqual({ compressed: 1 });
  });

  test("gets the status, text and metadata that a handler ends with", async () => {
    await start({
      methods: new Map([
        [
          "/kvmesh.test.Fail/Now",
          (stream) => ({
            onMessage: () => {
              stream.end(status.ABORTED, "naïve 100 % — no", [
                ["kvmesh-error-code", "stale_epoch"],
              ]);
            },
            onHalfClose: () => undefined,
            onClose: () => undefined,
          }),
        ],
      ]),
    });
    const error = await unary("/kvmesh.test.Fail/Now", Buffer.alloc(1)).catch(
      (caught: unknown) => caught as ServiceError,
    );
    expect(error).toMatchObject({ code: status.ABORTED, details: "naïve 100 % — no" });
    expect((error as ServiceError).metadata.get("kvmesh-error-code")).toEqual(["stale_epoch"]);
  });

  test("can cancel: the handler sees a reset and other calls go on", async () => {
    await start();
    const call = client.makeBidiStreamRequest(holdPath, same, same);
    const failed = new Promise<ServiceError>((resolve) => call.on("error", resolve));
    await new Promise((resolve) => {
      call.once("data", resolve);
      call.write(Buffer.from("first"));
    });
    call.cancel();
    expect((await failed).code).toBe(status.CANCELLED);
    await until(() => log.closes.reset === 1);
    expect(await echo([Buffer.from("second")])).toEqual([Buffer.from("second")]);
    expect(server.counts().streams).toBe(0);
  });

  test("has its deadline kept, on both sides", async () => {
    await start();
    const call = client.makeBidiStreamRequest(holdPath, same, same, {
      deadline: Date.now() + 150,
    });
    const error = await new Promise<ServiceError>((resolve) => {
      call.on("error", resolve);
      call.on("data", () => undefined);
      call.write(Buffer.alloc(1));
    });
    expect(error.code).toBe(status.DEADLINE_EXCEEDED);
    await until(() => server.counts().streams === 0);
    expect(log.closes.reset).toBe(1);
  });

  test("sends its metadata, repeated keys joined", async () => {
    const seen: (string | undefined)[] = [];
    await start({
      methods: new Map([
        [
          "/kvmesh.test.Headers/Read",
          (stream) => ({
            onMessage: () => {
              for (const name of ["x-one", "x-two", "x-three"]) seen.push(stream.header(name));
              stream.send(Buffer.alloc(0));
            },
            onHalfClose: () => {
              stream.end();
            },
            onClose: () => undefined,
          }),
        ],
      ]),
    });
    const metadata = new Metadata();
    metadata.add("x-one", "1");
    metadata.add("x-two", "a");
    metadata.add("x-two", "b");
    await new Promise((resolve, reject) => {
      client.makeUnaryRequest(
        "/kvmesh.test.Headers/Read",
        same,
        same,
        Buffer.alloc(0),
        metadata,
        (e, v) => {
          if (e === null) resolve(v);
          else reject(e);
        },
      );
    });
    expect(seen).toEqual(["1", "a, b", undefined].map((v) => v?.replace(", ", ",")));
  });

  test("loses only the call whose handler throws", async () => {
    const errors: unknown[] = [];
    const path = "/kvmesh.test.Broken/Call";
    await start({
      methods: new Map([
        [
          path,
          () => ({
            onMessage: () => {
              throw new Error("broken handler");
            },
            onHalfClose: () => undefined,
            onClose: () => undefined,
          }),
        ],
      ]),
      onHandlerError: (error) => errors.push(error),
    });
    expect(await codeOf(unary(path, Buffer.alloc(1)))).toBe(status.INTERNAL);
    expect(errors).toEqual([new Error("broken handler")]);
    expect(await echo([Buffer.from("alive")])).toEqual([Buffer.from("alive")]);
  });
});

describe("health", () => {
  const health = new GrpcHealth();
  const serving = Buffer.from([8, 1]);
  const nameOf = (service: string): Buffer =>
    Buffer.concat([Buffer.from([10, service.length]), Buffer.from(service)]);

  test("answers Check with the state, or NOT_FOUND", async () => {
    health.set("", servingStatus.serving);
    await start({ methods: health.methods() });
    const path = "/grpc.health.v1.Health/Check";
    expect(await unary(path, Buffer.alloc(0))).toEqual(serving);
    expect(await codeOf(unary(path, nameOf("nobody")))).toBe(status.NOT_FOUND);
    expect(await codeOf(unary(path, Buffer.from([10, 9, 1])))).toBe(status.INTERNAL);
  });

  test("tells Watch every change, also of a service not known yet", async () => {
    await start({ methods: health.methods() });
    const call = client.makeServerStreamRequest(
      "/grpc.health.v1.Health/Watch",
      same,
      same,
      nameOf("later"),
    );
    call.on("error", () => undefined);
    const seen: number[] = [];
    call.on("data", (answer: Buffer) => seen.push(answer[1] ?? 0));
    await until(() => seen.length === 1);
    health.set("later", servingStatus.notServing);
    health.set("later", servingStatus.serving);
    await until(() => seen.length === 3);
    expect(seen).toEqual([3, 2, 1]);
    const ended = new Promise((resolve) => call.on("status", resolve));
    health.endWatches();
    expect(await ended).toMatchObject({ code: status.UNAVAILABLE });
  });
});

describe("drain", () => {
  test("lets open calls end and then closes", async () => {
    await start();
    const call = client.makeBidiStreamRequest(echoPath, same, same);
    const answers: Buffer[] = [];
    call.on("data", (answer: Buffer) => answers.push(answer));
    call.write(Buffer.from("before"));
    await until(() => answers.length === 1);
    const drained = server.drain(5_000);
    await new Promise((resolve) => setTimeout(resolve, 50));
    call.write(Buffer.from("during"));
    await until(() => answers.length === 2);
    const ended = new Promise((resolve) => call.on("status", resolve));
    call.end();
    expect(await ended).toMatchObject({ code: status.OK });
    await drained;
    expect(server.counts()).toMatchObject({ connections: 0, closed: { drained: 1 } });
  });

  test("ends calls that stay open with UNAVAILABLE at its deadline", async () => {
    await start();
    const call = client.makeBidiStreamRequest(echoPath, same, same);
    const ended = new Promise((resolve) => call.on("status", resolve));
    call.on("error", () => undefined);
    call.on("data", () => undefined);
    call.write(Buffer.from("x"));
    await until(() => log.calls === 1);
    await server.drain(100);
    expect(await ended).toMatchObject({ code: status.UNAVAILABLE });
    expect(log.closes).toEqual({ ended: 0, reset: 1, connection_lost: 0 });
  });
});
