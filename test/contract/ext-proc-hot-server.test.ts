import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as grpc from "@grpc/grpc-js";
import { service as healthService } from "grpc-health-check";
import { pino } from "pino";
import { afterEach, describe, expect, test, vi } from "vitest";

import { parseCidr } from "../../services/shared/core/cidr.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { createMetrics } from "../../services/shared/edge/metrics.ts";
import {
  AccessLogServiceClient,
  StreamAccessLogsMessage,
} from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import {
  ExternalProcessorClient,
  type ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import type { Answer } from "../../services/router/core/exchange/exchange.ts";
import type { AccessRecord } from "../../services/router/edge/access-log/access-record.ts";
import {
  createHotServer,
  extProcName,
  type HotServer,
} from "../../services/router/edge/hot-server.ts";
import { hotServerKinds, type HotServerKind } from "../../services/router/edge/hot-server-kinds.ts";
import type { RequestContext } from "../../services/router/edge/request-context.ts";
import type { RequestDecider } from "../../services/router/edge/request-decider.ts";
import { routerMetrics } from "../../services/router/metrics.ts";
import { recordsByGeneratedCode } from "../support/message-oracles.ts";
import { playPeer, sendBody, sendHeaders, sendTrailers } from "../support/router-ext-proc.ts";

const soon = { timeout: 5_000, interval: 5 };
const route: Answer = {
  kind: "route",
  setHeaders: [["x-kvmesh-pool", "pool-default"]],
  removeHeaders: ["x-kvmesh-tenant"],
  metadata: {},
};

/** Answers when the test says so. */
class HeldDecider implements RequestDecider {
  readonly contexts: RequestContext[] = [];
  readonly answers: ((answer: Answer) => void)[] = [];
  cancelled = 0;

  decide(_: unknown, context: RequestContext, answer: (answer: Answer) => void) {
    this.contexts.push(context);
    this.answers.push(answer);
    return {
      waitMsMax: 1_500,
      cancel: () => {
        this.cancelled++;
      },
    };
  }
}

interface Hot {
  readonly server: HotServer;
  readonly address: string;
  readonly decider: HeldDecider;
  readonly records: AccessRecord[];
  readonly refused: string[];
  readonly ended: string[];
  calls: number;
}

const open: { close(): void }[] = [];
afterEach(() => {
  for (const each of open.splice(0).reverse()) each.close();
});

async function startHot(kind: HotServerKind, allowed = "127.0.0.0/8"): Promise<Hot> {
  const cidr = parseCidr(allowed);
  const decider = new HeldDecider();
  const records: AccessRecord[] = [];
  const refused: string[] = [];
  const ended: string[] = [];
  const limits = { bodyBytesMax: 64 << 20, bodyMemoryBytesMax: 256 << 20 };
  const { metrics } = createMetrics(routerMetrics);
  const state = { calls: 0 };
  const server = createHotServer(kind, {
    extProc: { decider, clock: realClock, log: pino({ level: "silent" }), metrics, limits },
    onRecord: (record) => records.push(record),
    allowed: cidr === undefined ? [] : [cidr],
    onCall: () => state.calls++,
    onRefused: (service) => refused.push(service),
    onCallEnded: (reason) => ended.push(reason),
  });
  const address = `127.0.0.1:${(await server.listen("127.0.0.1", 0)).toString()}`;
  open.push({
    close: () => {
      server.kill();
    },
  });
  return Object.assign(state, { server, address, decider, records, refused, ended });
}

function extProcClient(address: string, options: grpc.ClientOptions = {}): ExternalProcessorClient {
  const client = new ExternalProcessorClient(address, grpc.credentials.createInsecure(), {
    "grpc.max_send_message_length": -1,
    ...options,
  });
  open.push(client);
  return client;
}

interface HealthAnswer {
  readonly status: string;
}
/** The client of grpc.health.v1 that proto-loader makes. */
interface HealthClient extends grpc.Client {
  check(
    request: { service: string },
    callback: (error: grpc.ServiceError | null, answer?: HealthAnswer) => void,
  ): void;
  watch(request: { service: string }): grpc.ClientReadableStream<HealthAnswer>;
}

function healthClient(address: string): HealthClient {
  const Client = grpc.makeGenericClientConstructor(healthService, "Health");
  const client = new Client(address, grpc.credentials.createInsecure()) as unknown as HealthClient;
  open.push(client);
  return client;
}

describe.each(hotServerKinds)("the hot port on %s", (kind) => {
  test("takes records of the access log, also behind a message that says who sends them", async () => {
    const hot = await startHot(kind);
    const bytes = readFileSync(
      join(import.meta.dirname, "..", "fixtures", "envoy", "access-log.bin"),
    );
    const message = StreamAccessLogsMessage.decode(bytes);
    const client = new AccessLogServiceClient(hot.address, grpc.credentials.createInsecure());
    open.push(client);
    await new Promise<void>((resolve, reject) => {
      const call = client.streamAccessLogs((error) => {
        if (error === null) resolve();
        else reject(error);
      });
      call.write({ ...message, identifier: { node: undefined, logName: "kvmesh" } });
      call.write(message);
      call.end();
    });
    const [record] = recordsByGeneratedCode(bytes);
    expect(hot.records).toEqual([record, record]);
    expect(hot.calls).toBe(1);
  });

  test("lets nobody in who is not on the allow-list, except for health", async () => {
    const hot = await startHot(kind, "10.0.0.0/8");
    hot.server.setServing("", true);
    const outcome = await playPeer(extProcClient(hot.address), [sendHeaders("buffered")]);
    expect(outcome).toMatchObject({ status: grpc.status.PERMISSION_DENIED, answers: [] });
    expect(outcome.details).toMatch(/caller 127\.0\.0\.1.* is not on the allow-list/);
    expect(hot.refused).toEqual([extProcName]);
    expect(hot.decider.contexts).toHaveLength(0);
    expect(await check(healthClient(hot.address), "")).toBe("SERVING");
  });

  test("tells health checks and watches what it serves", async () => {
    const hot = await startHot(kind);
    hot.server.setServing("readiness", false);
    const client = healthClient(hot.address);
    expect(await check(client, "readiness")).toBe("NOT_SERVING");
    expect(await check(client, "no.such.Service")).toBe(grpc.status.NOT_FOUND);
    const seen: string[] = [];
    const watch = client.watch({ service: "readiness" });
    watch.on("data", ({ status }: HealthAnswer) => seen.push(status));
    watch.on("error", () => undefined);
    await vi.waitFor(() => {
      expect(seen).toEqual(["NOT_SERVING"]);
    }, soon);
    hot.server.setServing("readiness", true);
    hot.server.setServing("readiness", false);
    await vi.waitFor(() => {
      expect(seen).toEqual(["NOT_SERVING", "SERVING", "NOT_SERVING"]);
    }, soon);
    watch.cancel();
  });

  test("a request that waits is answered on its stream, with its timer put off", async () => {
    const hot = await startHot(kind);
    const peer = playPeer(
      extProcClient(hot.address),
      [sendHeaders("buffered"), { do: "await", answers: 1 }, sendBody({ model: "m" })],
      { metadata: { traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01` } },
    );
    await vi.waitFor(() => {
      expect(hot.decider.answers).toHaveLength(1);
    }, soon);
    expect(hot.decider.contexts[0]).toMatchObject({
      path: "/v1/completions",
      parent: { traceId: "a".repeat(32), spanId: "b".repeat(16), sampled: true },
    });
    expect(hot.server.bodyMemoryBytes()).toBe(0);
    hot.decider.answers[0]?.(route);
    const outcome = await peer;
    expect(outcome.status).toBe(grpc.status.OK);
    const [, extended, answered] = outcome.raw;
    expect(extended).toMatchObject({
      response: undefined,
      overrideMessageTimeout: { seconds: 1n, nanos: 500_000_000 },
    });
    expect(answered?.response).toMatchObject({
      $case: "requestBody",
      value: {
        response: { clearRouteCache: true, headerMutation: { removeHeaders: ["x-kvmesh-tenant"] } },
      },
    });
    expect(hot.decider.cancelled).toBe(0);
  });

  test.each(["cancel", "half_close"] as const)(
    "a peer that leaves by %s waits no more",
    async (how) => {
      const hot = await startHot(kind);
      const client = extProcClient(hot.address);
      const call = client.process();
      call.on("error", () => undefined);
      call.on("data", () => undefined);
      for (const step of [sendHeaders("duplex"), sendBody("x".repeat(1_000))]) {
        if (step.do === "send") call.write(step.message);
      }
      await vi.waitFor(() => {
        expect(hot.decider.answers).toHaveLength(1);
      }, soon);
      expect(hot.server.bodyMemoryBytes()).toBe(1_000);
      if (how === "cancel") call.cancel();
      else call.end();
      await vi.waitFor(() => {
        expect(hot.decider.cancelled).toBe(1);
        expect(hot.server.bodyMemoryBytes()).toBe(0);
      }, soon);
      hot.decider.answers[0]?.(route);
    },
  );

  test("a stop lets open calls end, takes no new ones and is over when they are", async () => {
    const hot = await startHot(kind);
    const peer = playPeer(extProcClient(hot.address), [sendHeaders("buffered"), sendBody("{}")]);
    await vi.waitFor(() => {
      expect(hot.decider.answers).toHaveLength(1);
    }, soon);
    const startedAt = performance.now();
    const stopped = hot.server.stop(4_000);
    const late = await playPeer(extProcClient(hot.address), [sendHeaders("buffered")]);
    expect(late.status).toBe(grpc.status.UNAVAILABLE);
    hot.decider.answers[0]?.(route);
    expect((await peer).status).toBe(grpc.status.OK);
    await stopped;
    expect(performance.now() - startedAt).toBeLessThan(3_900);
  });

  test("a stop cuts what does not end in time", async () => {
    const hot = await startHot(kind);
    const peer = playPeer(extProcClient(hot.address), [sendHeaders("buffered"), sendBody("{}")]);
    await vi.waitFor(() => {
      expect(hot.decider.answers).toHaveLength(1);
    }, soon);
    await hot.server.stop(100);
    expect((await peer).status).not.toBe(grpc.status.OK);
    expect(hot.decider.cancelled).toBe(1);
  });
});

describe("the lean server alone", () => {
  test("a body of 40 MB comes back through a small window, and its memory is held until it has", async () => {
    const hot = await startHot("lean");
    const client = extProcClient(hot.address, { "grpc-node.flow_control_window": 65_535 });
    const call = client.process();
    const body = Buffer.alloc(40 << 20, "0123456789abcdef");
    const parts: Buffer[] = [];
    const answers: string[] = [];
    call.pause();
    call.on("data", ({ response }: ProcessingResponse) => {
      answers.push(response?.$case ?? "");
      const mutation =
        response?.$case === "requestBody"
          ? response.value.response?.bodyMutation?.mutation
          : undefined;
      if (mutation?.$case === "streamedResponse") parts.push(mutation.value.body);
    });
    const status = new Promise<grpc.status>((resolve) => {
      call.on("error", () => undefined);
      call.on("status", (s) => {
        resolve(s.code);
      });
    });
    call.pause();
    for (const step of [sendHeaders("duplex"), sendBody(body, false), sendTrailers]) {
      if (step.do === "send") call.write(step.message);
    }
    await vi.waitFor(() => {
      expect(hot.decider.answers).toHaveLength(1);
    }, soon);
    hot.decider.answers[0]?.(route);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(hot.server.bodyMemoryBytes()).toBe(body.length);
    call.resume();
    expect(await status).toBe(grpc.status.OK);
    expect([answers[0], answers.at(-1)]).toEqual(["requestHeaders", "requestTrailers"]);
    expect(Buffer.concat(parts).equals(body)).toBe(true);
    expect(hot.server.bodyMemoryBytes()).toBe(0);
    expect(hot.ended).toEqual([]);
  });

  test("a peer that leaves in the middle of an echo frees its memory", async () => {
    const hot = await startHot("lean");
    const client = extProcClient(hot.address, { "grpc-node.flow_control_window": 65_535 });
    const call = client.process();
    call.on("error", () => undefined);
    for (const step of [sendHeaders("duplex"), sendBody(Buffer.alloc(8 << 20))]) {
      if (step.do === "send") call.write(step.message);
    }
    await vi.waitFor(() => {
      expect(hot.decider.answers).toHaveLength(1);
    }, soon);
    hot.decider.answers[0]?.(route);
    expect(hot.server.bodyMemoryBytes()).toBe(8 << 20);
    call.cancel();
    await vi.waitFor(() => {
      expect(hot.server.bodyMemoryBytes()).toBe(0);
    }, soon);
  });

  test("a message of other bytes ends its stream and says why", async () => {
    const hot = await startHot("lean");
    const raw = new grpc.Client(hot.address, grpc.credentials.createInsecure());
    open.push(raw);
    const keep = (bytes: Buffer): Buffer => bytes;
    for (const path of [
      `/${extProcName}/Process`,
      "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
    ]) {
      const call = raw.makeBidiStreamRequest(path, keep, keep);
      const ended = new Promise<grpc.StatusObject>((resolve) => {
        call.on("status", resolve);
      });
      call.on("data", () => undefined);
      call.on("error", () => undefined);
      call.write(Buffer.from([0x12, 0x7f]));
      call.write(Buffer.from([0x12, 0x7f]));
      expect(await ended).toMatchObject({
        code: grpc.status.INVALID_ARGUMENT,
        details: expect.stringMatching(/^the message is no (Proces|StreamAcc)/) as string,
      });
    }
  });
});

function check(client: HealthClient, name: string): Promise<string | grpc.status> {
  return new Promise((resolve) => {
    client.check({ service: name }, (error, answer) => {
      resolve(error === null ? (answer?.status ?? "") : error.code);
    });
  });
}
