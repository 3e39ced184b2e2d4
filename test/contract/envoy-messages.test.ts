import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadSync, type MethodDefinition } from "@grpc/proto-loader";
import { describe, expect, test } from "vitest";
import { clusterResource, endpointsResource } from "../../services/router/edge/ads-resources.ts";
import { Cluster } from "../../services/shared/gen/envoy/config/cluster/v3/cluster.ts";
import { ClusterLoadAssignment } from "../../services/shared/gen/envoy/config/endpoint/v3/endpoint.ts";
import { StreamAccessLogsMessage } from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import {
  DiscoveryRequest,
  DiscoveryResponse,
} from "../../services/shared/gen/envoy/service/discovery/v3/discovery.ts";
import {
  ProcessingRequest,
  ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import { RecordReader } from "../../services/router/edge/access-log/record-reader.ts";
import { RequestReader } from "../../services/router/edge/ext-proc/request-reader.ts";
import {
  plainEvent,
  recordsByGeneratedCode,
  requestByGeneratedCode,
} from "../support/message-oracles.ts";

const root = join(import.meta.dirname, "..", "..");
const fixture = (name: string): Buffer =>
  readFileSync(join(root, "test", "fixtures", "envoy", name));

const loaded = loadSync(
  [
    "envoy/service/ext_proc/v3/external_processor.proto",
    "envoy/service/accesslog/v3/als.proto",
    "envoy/service/discovery/v3/ads.proto",
  ],
  { includeDirs: [join(root, "protos")], longs: String, defaults: true, oneofs: true },
);

/** A method of the protos as proto-loader reads them at run time. */
function method(service: string, name: string): MethodDefinition<object, object> {
  const found = (loaded[service] as Record<string, MethodDefinition<object, object>> | undefined)?.[
    name
  ];
  if (found === undefined) throw new Error(`${service}/${name} is not in the protos`);
  return found;
}

interface Codec<T> {
  decode(bytes: Uint8Array): T;
  encode(message: T): { finish(): Uint8Array };
}
const again = <T>(codec: Codec<T>, bytes: Uint8Array): Buffer =>
  Buffer.from(codec.encode(codec.decode(bytes)).finish());

/** The message with its timestamps cut to milliseconds, which is what a `Date` of the generated code can hold. */
function inMilliseconds(message: object): unknown {
  return JSON.parse(
    JSON.stringify(message, (key, value: unknown) => {
      if (key !== "startTime" || value === null) return value;
      const { seconds, nanos } = value as { seconds: string; nanos: number };
      return { seconds, nanos: nanos - (nanos % 1_000_000) };
    }),
  );
}

const process_ = method("envoy.service.ext_proc.v3.ExternalProcessor", "Process");
const accessLog = method("envoy.service.accesslog.v3.AccessLogService", "StreamAccessLogs");
const discovery = method(
  "envoy.service.discovery.v3.AggregatedDiscoveryService",
  "StreamAggregatedResources",
);

describe("messages captured from Envoy", () => {
  test.each([
    ["process-request-headers.bin", process_, ProcessingRequest],
    ["process-request-body.bin", process_, ProcessingRequest],
    ["access-log.bin", accessLog, StreamAccessLogsMessage],
    ["discovery-ack.bin", discovery, DiscoveryRequest],
    ["discovery-nack.bin", discovery, DiscoveryRequest],
  ] as const)(
    "%s means the same to generated code and to proto-loader",
    (name, definition, codec) => {
      const bytes = fixture(name);
      const viaGenerated = again(codec as Codec<unknown>, bytes);
      expect(inMilliseconds(definition.requestDeserialize(viaGenerated))).toEqual(
        inMilliseconds(definition.requestDeserialize(bytes)),
      );
      expect(viaGenerated.length).toBeGreaterThan(0);
    },
  );

  test.each(["process-request-headers.bin", "process-request-body.bin"])(
    "%s is ordinary to the lean reader and means the same",
    (name) => {
      const event = new RequestReader().readOrdinary(fixture(name));
      const expected = requestByGeneratedCode(fixture(name)).event;
      expect(event === undefined ? undefined : plainEvent(event)).toEqual(plainEvent(expected));
    },
  );

  test("a record of the access log is ordinary to the lean reader and means the same", () => {
    const bytes = fixture("access-log.bin");
    expect(new RecordReader().readOrdinary(bytes)).toEqual(recordsByGeneratedCode(bytes));
  });

  test("request headers carry raw values, pseudo headers and the body mode", () => {
    const { request, protocolConfig } = ProcessingRequest.decode(
      fixture("process-request-headers.bin"),
    );
    expect(protocolConfig?.requestBodyMode).toBe(2);
    expect(request?.$case).toBe("requestHeaders");
    if (request?.$case !== "requestHeaders") return;
    expect(request.value.endOfStream).toBe(false);
    const headers = new Map(
      request.value.headers?.headers.map(({ key, value, rawValue }) => {
        expect(value).toBe("");
        return [key, rawValue.toString()];
      }),
    );
    expect(headers.get(":path")).toBe("/v1/chat/completions");
    expect(headers.get("x-kvmesh-pool")).toBe("pool-default");
    expect(headers.get("x-request-id")).toBe("0a7fbbd5-5b51-4ab1-a9d5-8d0b6a4b9d11");
  });

  test("a buffered body is one message with the end mark", () => {
    const { request } = ProcessingRequest.decode(fixture("process-request-body.bin"));
    expect(request).toMatchObject({ $case: "requestBody", value: { endOfStream: true } });
    if (request?.$case !== "requestBody") return;
    expect(request.value.body.toString()).toBe('{"model":"m/2"}');
  });

  test("an access log record has every field that closes the book", () => {
    const { identifier, logEntries } = StreamAccessLogsMessage.decode(fixture("access-log.bin"));
    expect(identifier).toBeUndefined();
    const entry = logEntries?.value.logEntry[0];
    const common = entry?.commonProperties;
    expect(common).toMatchObject({
      upstreamCluster: "pool-other",
      routeName: "pools",
      streamId: "0a7fbbd5-5b51-4ab1-a9d5-8d0b6a4b9d11",
      upstreamRequestAttemptCount: 1,
      accessLogType: 6,
    });
    const picked = common?.metadata?.filterMetadata["envoy.lb"]?.["x-gateway-destination-endpoint"];
    const served = common?.upstreamRemoteAddress?.address;
    expect(served?.$case).toBe("socketAddress");
    if (served?.$case !== "socketAddress") return;
    expect(picked).toBe(
      `${served.value.address}:${String(served.value.portSpecifier?.value ?? "")}`,
    );
    expect(common?.metadata?.filterMetadata["kvmesh"]).toEqual({ decision: "r.1.1" });
    expect(Number(common?.customTags["ttft_us"])).toBeGreaterThan(0);
    expect(common?.startTime?.getFullYear()).toBeGreaterThan(2024);
    expect(common?.timeToLastUpstreamRxByte?.nanos).toBeGreaterThan(0);
    expect(Object.keys(common?.filterStateObjects ?? {})).toEqual(["envoy.filters.http.ext_proc"]);
    expect(entry?.response).toMatchObject({
      responseCode: 200,
      responseCodeDetails: "via_upstream",
    });
    expect(entry?.response?.responseBodyBytes).toBeGreaterThan(0n);
    expect(entry?.request).toMatchObject({ requestMethod: 3, path: "/v1/chat/completions" });
  });

  test("a taken and a refused discovery answer are told apart", () => {
    const ack = DiscoveryRequest.decode(fixture("discovery-ack.bin"));
    expect(ack.errorDetail).toBeUndefined();
    expect(ack.versionInfo).toMatch(/^e0\.\d+$/);
    expect(ack.responseNonce).not.toBe("");
    const nack = DiscoveryRequest.decode(fixture("discovery-nack.bin"));
    expect(nack.errorDetail?.message).toContain("malformed IP address");
    expect(nack.versionInfo).not.toBe("");
  });
});

describe("messages for Envoy", () => {
  test("an answer means the same to proto-loader as to generated code", () => {
    const message: ProcessingResponse = {
      response: {
        $case: "requestBody",
        value: {
          response: {
            status: 0,
            headerMutation: {
              setHeaders: [
                {
                  header: { key: "x-kvmesh-pool", value: "", rawValue: Buffer.from("pool-a") },
                  appendAction: 2,
                  keepEmptyValue: false,
                },
              ],
              removeHeaders: ["x-a"],
            },
            bodyMutation: undefined,
            trailers: undefined,
            clearRouteCache: true,
          },
        },
      },
      dynamicMetadata: { kvmesh: { decision: "r.1.1" } },
      modeOverride: undefined,
      overrideMessageTimeout: { seconds: 2n, nanos: 5 },
      requestDrain: false,
    };
    const bytes = Buffer.from(ProcessingResponse.encode(message).finish());
    const read = process_.responseDeserialize(bytes);
    expect(read).toMatchObject({
      response: "requestBody",
      requestBody: { response: { clearRouteCache: true } },
      overrideMessageTimeout: { seconds: "2", nanos: 5 },
    });
    expect(ProcessingResponse.decode(process_.responseSerialize(read))).toEqual(
      ProcessingResponse.decode(bytes),
    );
  });

  test("an empty answer to trailers is kept", () => {
    const bytes = ProcessingResponse.encode({
      response: { $case: "requestTrailers", value: { headerMutation: undefined } },
      dynamicMetadata: undefined,
      modeOverride: undefined,
      overrideMessageTimeout: undefined,
      requestDrain: false,
    }).finish();
    expect(process_.responseDeserialize(Buffer.from(bytes))).toMatchObject({
      response: "requestTrailers",
    });
  });

  test("cluster and endpoint resources survive the way through proto-loader", () => {
    const answer = {
      versionInfo: "1.1",
      resources: [
        clusterResource("pool-a"),
        clusterResource("relays"),
        endpointsResource({
          cluster: "pool-a",
          endpoints: [
            { address: "[::1]:80", isDraining: true, workerIds: ["w1", "w2"] },
            { address: "127.0.0.1:8100", isDraining: false, workerIds: [] },
          ],
        }),
      ],
      typeUrl: "t",
      nonce: "1",
      controlPlane: { identifier: "r" },
    };
    const bytes = Buffer.from(DiscoveryResponse.encode(answer).finish());
    const read = discovery.responseDeserialize(bytes);
    const back = DiscoveryResponse.decode(discovery.responseSerialize(read));
    expect(back).toEqual(DiscoveryResponse.decode(bytes));
    expect(Cluster.decode(back.resources[0]?.value ?? Buffer.alloc(0)).name).toBe("pool-a");
    const set = ClusterLoadAssignment.decode(back.resources[2]?.value ?? Buffer.alloc(0));
    expect(set.endpoints[0]?.lbEndpoints.map(({ healthStatus }) => healthStatus)).toEqual([3, 1]);
    expect(set.endpoints[0]?.lbEndpoints[0]?.metadata?.filterMetadata["kvmesh"]).toEqual({
      workers: ["w1", "w2"],
    });
  });
});
