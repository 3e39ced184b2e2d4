import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../../shared/core/random.ts";
import { ProcessingRequest } from "../../../shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import {
  outcome,
  plainEvent,
  plainRequest,
  requestByGeneratedCode,
} from "../../../../test/support/message-oracles.ts";
import { randomProcessingRequest } from "../../../../test/support/random-messages.ts";
import { RequestReader } from "./request-reader.ts";

const reader = new RequestReader();
const encoded = (message: Partial<ProcessingRequest>): Uint8Array =>
  ProcessingRequest.encode({
    request: undefined,
    metadataContext: undefined,
    attributes: {},
    observabilityMode: false,
    protocolConfig: undefined,
    ...message,
  }).finish();
const header = (key: string, rawValue: string | Buffer, value = "") => ({
  key,
  value,
  rawValue: Buffer.from(rawValue as string),
});
const headers = (...list: ReturnType<typeof header>[]): Uint8Array =>
  encoded({
    request: {
      $case: "requestHeaders",
      value: { headers: { headers: list }, endOfStream: false },
    },
  });
const body = (bytes: Buffer | string, endOfStream = true): Uint8Array =>
  encoded({
    request: {
      $case: "requestBody",
      value: {
        body: Buffer.from(bytes as string),
        endOfStream,
        endOfStreamWithoutMessage: false,
        grpcMessageCompressed: false,
      },
    },
  });

/** Reads, and checks against the generated decoder; says whether that one was needed. */
function read(bytes: Uint8Array): { plain: unknown; isOrdinary: boolean } {
  const plain = outcome(() => plainRequest(reader.read(bytes)));
  expect(plain).toEqual(outcome(() => plainRequest(requestByGeneratedCode(bytes))));
  return { plain, isOrdinary: reader.readOrdinary(bytes) !== undefined };
}

describe("ordinary messages", () => {
  test("a body is a view of the message", () => {
    const bytes = body("{}".repeat(500));
    const event = reader.readOrdinary(bytes);
    expect(event).toMatchObject({ kind: "request_body", endOfStream: true });
    if (event?.kind !== "request_body") return;
    expect(event.body.buffer).toBe(bytes.buffer);
    expect(Buffer.from(event.body).toString()).toBe("{}".repeat(500));
  });

  test("listed headers are kept beyond the message, the last of several", () => {
    const bytes = headers(
      header(":path", "/a"),
      header("accept", "*/*"),
      header("x-request-id", "1"),
      header("x-request-id", "2"),
      header("content-type", "", "text"),
      header("traceparent", Buffer.from([0xe4])),
    );
    const event = reader.readOrdinary(bytes);
    bytes.fill(0);
    expect(event === undefined ? undefined : plainEvent(event)).toMatchObject({
      headers: {
        ":path": "/a",
        ":method": undefined,
        "x-request-id": "2",
        "content-type": "text",
        traceparent: "ä",
      },
    });
  });

  test("the limit to a subset is read with any part", () => {
    const metadataContext = {
      filterMetadata: {
        "envoy.lb.subset_hint": { "x-gateway-destination-endpoint-subset": ["a:1", "b:2"] },
      },
      typedFilterMetadata: {},
    };
    const bytes = encoded({
      request: { $case: "requestTrailers", value: { trailers: undefined } },
      metadataContext,
    });
    expect(reader.readOrdinary(bytes)).toEqual({ kind: "request_trailers" });
    expect(reader.read(bytes).subset).toEqual(new Set(["a:1", "b:2"]));
  });

  test("any message that Envoy may send means the same to the generated decoder", () => {
    let ordinary = 0;
    for (let seed = 0; seed < 3_000; seed++) {
      const message = randomProcessingRequest(new SeededRandom(seed));
      if (read(ProcessingRequest.encode(message).finish()).isOrdinary) ordinary++;
    }
    // The rest: parts of responses, empty messages, names that are not in lower case.
    expect(ordinary).toBeGreaterThan(1_000);
  });
});

describe("what the generated decoder judges", () => {
  const plainBody = body("x");
  test.each<[string, number[] | Uint8Array]>([
    ["an empty message", []],
    ["two parts, of which the last counts", [...plainBody, ...body("y")]],
    ["a part of a response", [0x1a, 0x00]],
    ["a group", [...plainBody, 0x63, 0x64]],
    ["a group that does not end", [...plainBody, 0x63]],
    ["an end without a group", [...plainBody, 0x64, 1, 2, 3]],
    ["a zero tag", [0x00, ...plainBody]],
    ["a tag longer than needed", [0xa2, 0x00, 0x00]],
    ["a length longer than needed", [0x22, 0x80, 0x00]],
    ["a length beyond the message", [0x22, 0x05, 0x0a]],
    ["a length beyond its part", [0x22, 0x02, 0x0a, 0x05, 1, 2, 3, 4, 5]],
    ["a number where a part belongs", [0x20, 0x01]],
    ["a part where a number belongs", [0x22, 0x02, 0x12, 0x00]],
    ["a varint without end", [0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]],
    ["a name that is not in lower case", headers(header("X-Request-Id", "7"))],
    [
      "a name that other rules of lower case make a listed one",
      headers(header("x-\u212avmesh-tenant", "7")),
    ],
    ["text that is not ASCII", headers(header("x-request-id", "", "größe"))],
    ["half a header", headers(header("x-request-id", "7")).subarray(0, -1)],
  ])("%s", (_name, bytes) => {
    expect(read(Uint8Array.from(bytes)).isOrdinary).toBe(false);
  });

  test("no letter beyond ASCII makes a name one of ours", () => {
    const { event } = reader.read(headers(header("x-\u212avmesh-tenant", "7")));
    expect(event.kind === "request_headers" ? event.headers.get("x-kvmesh-tenant") : "?").toBe(
      undefined,
    );
  });

  test("fields that are not known are passed over", () => {
    const bytes = Uint8Array.from([...body("x"), 0xa0, 0x06, 0x01, 0xa5, 0x06, 1, 2, 3, 4]);
    expect(read(bytes)).toMatchObject({ isOrdinary: true });
  });
});
