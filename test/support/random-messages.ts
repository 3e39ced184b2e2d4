import type { SeededRandom } from "../../services/shared/core/random.ts";
import type { Address } from "../../services/shared/gen/envoy/config/core/v3/address.ts";
import type { Metadata } from "../../services/shared/gen/envoy/config/core/v3/base.ts";
import type { HTTPAccessLogEntry } from "../../services/shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import {
  HTTPAccessLogEntry as EntryCodec,
  ResponseFlags,
} from "../../services/shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import type { StreamAccessLogsMessage } from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import type { ProcessingRequest } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";

/** One of a list. */
export function pick<T>(random: SeededRandom, list: readonly T[]): T {
  return list[random.int(list.length)] as T;
}

/** True once in `n` times. */
export function once(random: SeededRandom, n: number): boolean {
  return random.int(n) === 0;
}

const words = [
  "",
  "a",
  "x-request-id",
  "POST",
  "/v1/chat/completions",
  "127.0.0.1:8100",
  "größe",
  "K",
  "𝄞",
];

/** Short text, mostly ASCII. */
export function randomText(random: SeededRandom): string {
  const text = pick(random, words);
  return once(random, 3) ? text.repeat(random.int(40)) : text;
}

function randomBytes(random: SeededRandom, max: number): Buffer {
  return Buffer.from(Array.from({ length: random.int(max) }, () => random.int(256)));
}

function randomValue(random: SeededRandom, depth = 0): unknown {
  switch (random.int(depth > 3 ? 4 : 6)) {
    case 0:
      return null;
    case 1:
      return random.int(1_000) / 7;
    case 2:
      return randomText(random);
    case 3:
      return once(random, 2);
    case 4:
      return Array.from({ length: random.int(3) }, () => randomValue(random, depth + 1));
    default:
      return randomStruct(random, depth + 1);
  }
}

function randomStruct(random: SeededRandom, depth = 0): Record<string, unknown> {
  const entries = Array.from({ length: random.int(4) }, () => [
    randomText(random),
    randomValue(random, depth),
  ]);
  return Object.fromEntries(entries) as Record<string, unknown>;
}

function randomMetadata(random: SeededRandom, namespaces: Record<string, unknown>): Metadata {
  const filterMetadata: Record<string, Record<string, unknown>> = {};
  if (once(random, 2)) filterMetadata[randomText(random)] = randomStruct(random);
  for (const [name, value] of Object.entries(namespaces)) {
    if (once(random, 2)) filterMetadata[name] = value as Record<string, unknown>;
  }
  const any = { typeUrl: randomText(random), value: randomBytes(random, 20) };
  return {
    filterMetadata,
    typedFilterMetadata: once(random, 4) ? { [randomText(random)]: any } : {},
  };
}

const headerNames = [
  ":method",
  ":path",
  ":authority",
  "content-type",
  "content-length",
  "traceparent",
  "tracestate",
  "x-request-id",
  "X-Request-Id",
  "accept",
  "x-kvmesh-tenant",
  "session_id",
  // The Kelvin sign, whose lower case is an ordinary k.
  "x-\u212Avmesh-tenant",
];

/** A message as an Envoy of some configuration may send it, and some that none sends. */
export function randomProcessingRequest(random: SeededRandom): ProcessingRequest {
  const headerMap = () => ({
    headers: Array.from({ length: random.int(14) }, () => {
      const isRaw = !once(random, 5);
      return {
        key: pick(random, headerNames),
        value: isRaw ? "" : randomText(random),
        rawValue: isRaw ? randomBytes(random, 60) : Buffer.alloc(0),
      };
    }),
  });
  const headers = () => ({
    headers: once(random, 9) ? undefined : headerMap(),
    endOfStream: once(random, 2),
  });
  const body = () => ({
    body: randomBytes(random, once(random, 4) ? 2_000 : 40),
    endOfStream: once(random, 2),
    endOfStreamWithoutMessage: once(random, 9),
    grpcMessageCompressed: once(random, 9),
  });
  const parts: readonly (() => ProcessingRequest["request"])[] = [
    () => ({ $case: "requestHeaders", value: headers() }),
    () => ({ $case: "requestHeaders", value: headers() }),
    () => ({ $case: "requestBody", value: body() }),
    () => ({ $case: "requestBody", value: body() }),
    () => ({
      $case: "requestTrailers",
      value: { trailers: once(random, 2) ? headerMap() : undefined },
    }),
    () => ({ $case: "responseHeaders", value: headers() }),
    () => ({ $case: "responseBody", value: body() }),
    () => ({ $case: "responseTrailers", value: { trailers: headerMap() } }),
    () => undefined,
  ];
  const key = "x-gateway-destination-endpoint-subset";
  const subset = pick(random, [
    { [key]: "127.0.0.1:1, 127.0.0.1:2," },
    { [key]: ["127.0.0.1:1", 7, "127.0.0.1:2"] },
    { [key]: null },
    {},
  ]);
  return {
    request: pick(random, parts)(),
    metadataContext: once(random, 2)
      ? undefined
      : randomMetadata(random, { "envoy.lb.subset_hint": subset }),
    attributes: once(random, 5) ? { [randomText(random)]: randomStruct(random) } : {},
    observabilityMode: once(random, 9),
    protocolConfig: once(random, 2)
      ? undefined
      : {
          requestBodyMode: random.int(7) as 0,
          responseBodyMode: random.int(4) as 0,
          sendBodyWithoutWaitingForHeaderResponse: once(random, 2),
        },
  };
}

function randomAddress(random: SeededRandom): Address {
  if (once(random, 9)) return { address: { $case: "pipe", value: { path: "/tmp/x", mode: 7 } } };
  if (once(random, 9)) return { address: undefined };
  const portSpecifier = once(random, 9)
    ? ({ $case: "namedPort", value: "http" } as const)
    : ({ $case: "portValue", value: random.int(65_536) } as const);
  const address = pick(random, ["127.0.0.1", "fd00::7", "", "größe"]);
  return {
    address: {
      $case: "socketAddress",
      value: { protocol: random.int(2) as 0, address, portSpecifier },
    },
  };
}

/** One record, with any part absent. */
export function randomAccessEntry(random: SeededRandom): HTTPAccessLogEntry {
  const empty = EntryCodec.decode(new Uint8Array(0));
  const time = () =>
    once(random, 5)
      ? undefined
      : { seconds: BigInt(random.int(100) - (once(random, 20) ? 50 : 0)), nanos: random.int(1e9) };
  const address = () => (once(random, 5) ? undefined : randomAddress(random));
  const flags = ResponseFlags.decode(new Uint8Array(0));
  for (const name of Object.keys(flags) as (keyof ResponseFlags)[]) flags[name] = once(random, 8);
  const text = () => (once(random, 12) ? "größe" : pick(random, ["", "r.1.7", "w0", "12.5", "x"]));
  const mesh = {
    decision: text(),
    traceparent: text(),
    predicted_ttft_ms: text(),
    worker: once(random, 9) ? 7 : text(),
  };
  const picked = pick(random, ["", "127.0.0.1:8100", "127.0.0.1:8100,[::1]:80"]);
  const lb = { "x-gateway-destination-endpoint": once(random, 9) ? ["x"] : picked };
  const any = { typeUrl: randomText(random), value: randomBytes(random, 20) };
  return {
    ...empty,
    protocolVersion: random.int(4) as 0,
    commonProperties: once(random, 12)
      ? undefined
      : {
          downstreamRemoteAddress: address(),
          downstreamLocalAddress: address(),
          startTime: once(random, 5) ? undefined : new Date(1.79e12 + random.int(1e9)),
          timeToLastRxByte: time(),
          timeToFirstUpstreamTxByte: time(),
          timeToLastUpstreamTxByte: time(),
          timeToFirstUpstreamRxByte: time(),
          timeToLastUpstreamRxByte: time(),
          timeToFirstDownstreamTxByte: time(),
          timeToLastDownstreamTxByte: time(),
          upstreamRemoteAddress: address(),
          upstreamCluster: pick(random, ["", "pool-default", "größe"]),
          responseFlags: once(random, 2) ? undefined : flags,
          metadata: once(random, 5)
            ? undefined
            : randomMetadata(random, { kvmesh: mesh, "envoy.lb": lb }),
          upstreamTransportFailureReason: randomText(random),
          routeName: randomText(random),
          filterStateObjects: once(random, 2) ? { "envoy.filters.http.ext_proc": any } : {},
          customTags: once(random, 4)
            ? {}
            : { ttft_us: pick(random, ["", "-", "12345", "1e3", "Infinity", "ü"]), other: "1" },
          duration: time(),
          upstreamRequestAttemptCount: random.int(4),
          streamId: randomText(random),
          accessLogType: random.int(13) as 0,
        },
    request: once(random, 12)
      ? undefined
      : {
          requestMethod: random.int(9) as 0,
          scheme: "http",
          authority: randomText(random),
          path: randomText(random),
          userAgent: randomText(random),
          requestId: text(),
          requestHeadersBytes: BigInt(random.int(1e6)),
          requestBodyBytes: BigInt(random.int(1e9)) * BigInt(random.int(100)),
          requestHeaders: once(random, 3) ? { [randomText(random)]: randomText(random) } : {},
        },
    response: once(random, 12)
      ? undefined
      : {
          responseCode: once(random, 9) ? undefined : random.int(600),
          responseHeadersBytes: BigInt(random.int(1e6)),
          responseBodyBytes: BigInt(random.int(1e9)) * BigInt(random.int(1e6)),
          responseHeaders: once(random, 3) ? { [randomText(random)]: randomText(random) } : {},
          responseCodeDetails: text(),
        },
  };
}

/** A message of the access log. */
export function randomAccessLogs(random: SeededRandom): StreamAccessLogsMessage {
  const logEntry = Array.from({ length: random.int(4) }, () => randomAccessEntry(random));
  return {
    identifier: once(random, 12) ? { node: undefined, logName: "kvmesh" } : undefined,
    logEntries: once(random, 12) ? undefined : { $case: "httpLogs", value: { logEntry } },
  };
}

/** The bytes with a few faults of the kinds that break readers: flips, cuts, repeats, insertions, long varints. */
export function mutate(random: SeededRandom, bytes: Uint8Array): Uint8Array {
  let out = [...bytes];
  for (let n = 1 + random.int(3); n > 0; n--) {
    const at = random.int(out.length + 1);
    switch (random.int(7)) {
      case 0:
        if (out.length > 0) out[at % out.length] = random.int(256);
        break;
      case 1:
        if (out.length > 0)
          out[at % out.length] = (out[at % out.length] as number) ^ (1 << random.int(8));
        break;
      case 2:
        out.splice(at, 1 + random.int(4));
        break;
      case 3:
        out.splice(at, 0, ...Array.from({ length: 1 + random.int(4) }, () => random.int(256)));
        break;
      case 4:
        out = [...out, ...out.slice(at)];
        break;
      case 5:
        out = out.slice(0, at);
        break;
      default:
        out.splice(
          at,
          0,
          ...Array.from({ length: random.int(11) }, () => 0x80 | random.int(128)),
          random.int(128),
        );
    }
    if (out.length > 8_192) out = out.slice(0, 8_192);
  }
  return Uint8Array.from(out);
}
