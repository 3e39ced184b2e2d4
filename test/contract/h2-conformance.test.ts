/**
 * What RFC 9113 and RFC 7541 demand of a server, by hand-written frames over a socket. Cases and their numbers follow
 * the h2spec suite (version 2.6), whose sections are those of RFC 7540.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { HpackDecoder } from "../../services/shared/core/hpack/decoder.ts";
import type { H2GrpcServer } from "../../services/shared/edge/h2/h2-grpc-server.ts";
import {
  block,
  data,
  flags,
  frame,
  grpcMessage,
  headers,
  preface,
  requestFields,
  rst,
  settings,
  types,
  uint32,
  windowUpdate,
} from "../support/h2-frames.ts";
import { RawH2Client } from "../support/h2-raw-client.ts";
import { echoPath, holdPath, startEchoServer, until } from "../support/h2-servers.ts";

const code = {
  none: 0,
  protocol: 1,
  flowControl: 3,
  streamClosed: 5,
  frameSize: 6,
  refused: 7,
  compression: 9,
} as const;

/** The fields of the first block of an answer. */
function fieldsOf(headerBlock: Buffer): Record<string, string> {
  const limits = { tableBytesMax: 4_096, listBytesMax: 65_536, fieldsMax: 100 };
  const list = new HpackDecoder(limits).decode(headerBlock, 0, headerBlock.length);
  return Object.fromEntries((list?.fields ?? []).map(({ name, value }) => [name, value]));
}

/** What the server has to do. `reset` may also be answered by ending the connection with the same code. */
type Expected =
  | { readonly goaway: number | readonly number[] }
  | { readonly reset: number; readonly streamId?: number }
  | "goes on";

interface Case {
  readonly name: string;
  readonly send: readonly Uint8Array[];
  readonly expect: Expected;
}

const request = block(requestFields(holdPath));
/** A stream that stays open in both directions. */
const open = headers(1, request);
/** A stream on which the client has ended; the server has not. */
const halfClosed = headers(1, request, flags.end);
/** A stream that both sides have ended. */
const closed = headers(1, block(requestFields(echoPath)), flags.end);
const unended = frame(types.headers, 0, 1, request);

function without(name: string): Buffer {
  return block(requestFields(holdPath).filter(([field]) => field !== name));
}

function withFields(...fields: [string, string][]): Buffer {
  return block([...requestFields(holdPath), ...fields]);
}

function twice(name: string): Buffer {
  const fields = requestFields(holdPath);
  return block(fields.flatMap((field) => (field[0] === name ? [field, field] : [field])));
}

const sections: Readonly<Record<string, readonly Case[]>> = {
  "4.1 Frame Format": [
    { name: "1 unknown frame type", send: [frame(0x16, 0, 0, [1, 2, 3])], expect: "goes on" },
    {
      name: "2 undefined flags",
      send: [frame(types.ping, 0x16, 0, Buffer.alloc(8))],
      expect: "goes on",
    },
    {
      name: "3 reserved bit",
      send: [frame(types.ping, 0, 0x8000_0000, Buffer.alloc(8))],
      expect: "goes on",
    },
  ],
  "4.2 Frame Size": [
    {
      name: "1 DATA of 16,384 octets",
      send: [open, data(1, grpcMessage(Buffer.alloc(16_379)))],
      expect: "goes on",
    },
    {
      name: "2 larger DATA",
      send: [open, data(1, Buffer.alloc(16_385))],
      expect: { goaway: code.frameSize },
    },
    {
      name: "3 larger HEADERS",
      send: [headers(1, Buffer.concat([request, Buffer.alloc(16_385)]))],
      expect: { goaway: code.frameSize },
    },
  ],
  "4.3 Header Compression and Decompression": [
    {
      name: "1 invalid block",
      send: [headers(1, Buffer.from([0, 0x85, 0xf2, 0xb2, 0x4a]))],
      expect: { goaway: code.compression },
    },
    {
      name: "2 PRIORITY inside a block",
      send: [unended, frame(types.priority, 0, 1, [0, 0, 0, 0, 255])],
      expect: { goaway: code.protocol },
    },
    {
      name: "3 HEADERS of another stream inside a block",
      send: [unended, headers(3, request)],
      expect: { goaway: code.protocol },
    },
  ],
  "5.1 Stream States": [
    { name: "1 idle: DATA", send: [data(1, [1])], expect: { goaway: code.protocol } },
    { name: "2 idle: RST_STREAM", send: [rst(1, 8)], expect: { goaway: code.protocol } },
    {
      name: "3 idle: WINDOW_UPDATE",
      send: [windowUpdate(1, 100)],
      expect: { goaway: code.protocol },
    },
    {
      name: "4 idle: CONTINUATION",
      send: [frame(types.continuation, flags.endHeaders, 1, request)],
      expect: { goaway: code.protocol },
    },
    {
      name: "5 half closed (remote): DATA",
      send: [halfClosed, data(1, [1])],
      expect: { reset: code.streamClosed },
    },
    {
      name: "6 half closed (remote): HEADERS",
      send: [halfClosed, headers(1, request)],
      expect: { reset: code.streamClosed },
    },
    {
      name: "7 half closed (remote): CONTINUATION",
      send: [halfClosed, frame(types.continuation, flags.endHeaders, 1, request)],
      expect: { goaway: [code.protocol, code.streamClosed] },
    },
    {
      name: "8 closed by RST_STREAM: DATA",
      send: [open, rst(1, 8), data(1, [1])],
      expect: { reset: code.streamClosed },
    },
    {
      name: "9 closed by RST_STREAM: HEADERS",
      send: [open, rst(1, 8), headers(1, request)],
      expect: { reset: code.streamClosed },
    },
    {
      name: "10 closed by RST_STREAM: CONTINUATION",
      send: [open, rst(1, 8), frame(types.continuation, flags.endHeaders, 1, request)],
      expect: { goaway: [code.protocol, code.streamClosed] },
    },
    { name: "11 closed: DATA", send: [closed, data(1, [1])], expect: { reset: code.streamClosed } },
    {
      name: "12 closed: HEADERS",
      send: [closed, headers(1, request)],
      expect: { goaway: code.streamClosed },
    },
    {
      name: "13 closed: CONTINUATION",
      send: [closed, frame(types.continuation, flags.endHeaders, 1, request)],
      expect: { goaway: [code.protocol, code.streamClosed] },
    },
    {
      name: "closed: PRIORITY",
      send: [closed, frame(types.priority, 0, 1, [0, 0, 0, 0, 1])],
      expect: "goes on",
    },
    { name: "closed: WINDOW_UPDATE", send: [closed, windowUpdate(1, 1)], expect: "goes on" },
    { name: "closed: RST_STREAM", send: [closed, rst(1, 0)], expect: "goes on" },
  ],
  "5.1.1 Stream Identifiers": [
    { name: "1 even", send: [headers(2, request)], expect: { goaway: code.protocol } },
    {
      name: "2 smaller than before",
      send: [headers(5, request), headers(3, request)],
      expect: { goaway: code.protocol },
    },
  ],
  "5.3.1 Stream Dependencies": [
    {
      name: "1 HEADERS that depends on itself",
      send: [
        frame(
          types.headers,
          flags.endHeaders | flags.priority,
          1,
          Buffer.concat([uint32(1), Buffer.from([255]), request]),
        ),
      ],
      expect: { reset: code.protocol },
    },
    {
      name: "2 PRIORITY that depends on itself",
      send: [open, frame(types.priority, 0, 1, [0, 0, 0, 1, 255])],
      expect: { reset: code.protocol },
    },
    {
      name: "PRIORITY of an idle stream that depends on itself",
      send: [frame(types.priority, 0, 1, [0, 0, 0, 1, 255])],
      expect: { goaway: code.protocol },
    },
  ],
  "5.4.1 Connection Error Handling": [
    {
      name: "1 invalid PING",
      send: [frame(types.ping, 0, 0, Buffer.alloc(6))],
      expect: { goaway: code.frameSize },
    },
  ],
  "5.5 Extending HTTP/2": [
    {
      name: "1 unknown frames",
      send: [frame(0x10, 0xff, 0), frame(0xff, 0xff, 7, Buffer.alloc(99))],
      expect: "goes on",
    },
    {
      name: "2 unknown frame inside a header block",
      send: [unended, frame(0x16, 0, 0)],
      expect: { goaway: code.protocol },
    },
  ],
  "6.1 DATA": [
    { name: "1 stream 0", send: [data(0, [1])], expect: { goaway: code.protocol } },
    {
      name: "2 stream not open",
      send: [halfClosed, data(1, [1])],
      expect: { reset: code.streamClosed },
    },
    {
      name: "3 padding as long as the frame",
      send: [open, frame(types.data, flags.padded, 1, [5, 0, 0, 0, 0])],
      expect: { goaway: code.protocol },
    },
    {
      name: "padded, without its padding length",
      send: [open, frame(types.data, flags.padded, 1)],
      expect: { goaway: [code.protocol, code.frameSize] },
    },
    {
      name: "nothing but padding",
      send: [open, frame(types.data, flags.padded, 1, [4, 0, 0, 0, 0])],
      expect: "goes on",
    },
  ],
  "6.2 HEADERS": [
    {
      name: "1 without END_HEADERS, then PRIORITY",
      send: [unended, frame(types.priority, 0, 3, [0, 0, 0, 0, 1])],
      expect: { goaway: code.protocol },
    },
    {
      name: "2 without END_HEADERS, then another stream's",
      send: [unended, headers(3, request)],
      expect: { goaway: code.protocol },
    },
    { name: "3 stream 0", send: [headers(0, request)], expect: { goaway: code.protocol } },
    {
      name: "4 padding longer than the frame",
      send: [
        frame(
          types.headers,
          flags.endHeaders | flags.padded,
          1,
          Buffer.concat([Buffer.from([255]), request.subarray(0, 100)]),
        ),
      ],
      expect: { goaway: code.protocol },
    },
    {
      name: "padded and with priority",
      send: [
        frame(
          types.headers,
          flags.endHeaders | flags.padded | flags.priority,
          1,
          Buffer.concat([Buffer.from([3, 0, 0, 0, 0, 7]), request, Buffer.alloc(3)]),
        ),
        data(1, [], flags.end),
      ],
      expect: "goes on",
    },
    {
      name: "too short for its priority",
      send: [frame(types.headers, flags.endHeaders | flags.priority, 1, [0, 0])],
      expect: { goaway: [code.protocol, code.frameSize] },
    },
  ],
  "6.3 PRIORITY": [
    {
      name: "1 stream 0",
      send: [frame(types.priority, 0, 0, [0, 0, 0, 1, 1])],
      expect: { goaway: code.protocol },
    },
    {
      name: "2 wrong length",
      send: [open, frame(types.priority, 0, 1, [0, 0, 0, 1])],
      expect: { reset: code.frameSize },
    },
    {
      name: "idle stream",
      send: [frame(types.priority, 0, 9, [0, 0, 0, 1, 1])],
      expect: "goes on",
    },
  ],
  "6.4 RST_STREAM": [
    { name: "1 stream 0", send: [rst(0, 8)], expect: { goaway: code.protocol } },
    { name: "2 idle stream", send: [rst(1, 8)], expect: { goaway: code.protocol } },
    {
      name: "3 wrong length",
      send: [open, frame(types.rst, 0, 1, [0, 0, 8])],
      expect: { goaway: code.frameSize },
    },
  ],
  "6.5 SETTINGS": [
    {
      name: "1 acknowledgement with a payload",
      send: [frame(types.settings, flags.ack, 0, [0, 1, 0, 0, 0, 0])],
      expect: { goaway: code.frameSize },
    },
    {
      name: "2 on a stream",
      send: [frame(types.settings, 0, 1, [0, 3, 0, 0, 0, 9])],
      expect: { goaway: code.protocol },
    },
    {
      name: "3 wrong length",
      send: [frame(types.settings, 0, 0, [0, 3, 0])],
      expect: { goaway: code.frameSize },
    },
  ],
  "6.5.2 Defined SETTINGS Parameters": [
    { name: "1 ENABLE_PUSH of 2", send: [settings([2, 2])], expect: { goaway: code.protocol } },
    {
      name: "2 INITIAL_WINDOW_SIZE above 2^31-1",
      send: [settings([4, 0x8000_0000])],
      expect: { goaway: code.flowControl },
    },
    {
      name: "3 MAX_FRAME_SIZE below 16,384",
      send: [settings([5, 16_383])],
      expect: { goaway: code.protocol },
    },
    {
      name: "4 MAX_FRAME_SIZE above 2^24-1",
      send: [settings([5, 0x100_0000])],
      expect: { goaway: code.protocol },
    },
    { name: "5 unknown identifier", send: [settings([0xff, 1])], expect: "goes on" },
  ],
  "6.7 PING": [
    {
      name: "3 on a stream",
      send: [frame(types.ping, 0, 1, Buffer.alloc(8))],
      expect: { goaway: code.protocol },
    },
    {
      name: "4 wrong length",
      send: [frame(types.ping, 0, 0, Buffer.alloc(7))],
      expect: { goaway: code.frameSize },
    },
    {
      name: "answer nobody asked for",
      send: [frame(types.ping, flags.ack, 0, Buffer.alloc(8))],
      expect: "goes on",
    },
  ],
  "6.8 GOAWAY": [
    {
      name: "1 on a stream",
      send: [frame(types.goaway, 0, 1, Buffer.alloc(8))],
      expect: { goaway: code.protocol },
    },
    {
      name: "too short",
      send: [frame(types.goaway, 0, 0, Buffer.alloc(7))],
      expect: { goaway: code.frameSize },
    },
  ],
  "6.9 WINDOW_UPDATE": [
    { name: "1 by 0", send: [windowUpdate(0, 0)], expect: { goaway: code.protocol } },
    {
      name: "2 by 0 on a stream",
      send: [open, windowUpdate(1, 0)],
      expect: { reset: code.protocol },
    },
    {
      name: "3 wrong length",
      send: [frame(types.windowUpdate, 0, 0, [0, 0, 1])],
      expect: { goaway: code.frameSize },
    },
  ],
  "6.9.1 The Flow-Control Window": [
    {
      name: "2 the connection's above 2^31-1",
      send: [windowUpdate(0, 0x7fff_ffff), windowUpdate(0, 0x7fff_ffff)],
      expect: { goaway: code.flowControl },
    },
    {
      name: "3 a stream's above 2^31-1",
      send: [open, windowUpdate(1, 0x7fff_ffff), windowUpdate(1, 0x7fff_ffff)],
      expect: { reset: code.flowControl },
    },
  ],
  "6.9.2 Initial Flow-Control Window Size": [
    {
      name: "3 above 2^31-1 by a change of settings",
      send: [open, windowUpdate(1, 0x7fff_0000 - 65_535), settings([4, 0x7fff_ffff])],
      expect: { goaway: code.flowControl },
    },
  ],
  "6.10 CONTINUATION": [
    {
      name: "1 several after HEADERS",
      send: [
        frame(types.headers, flags.end, 1, request.subarray(0, 11)),
        frame(types.continuation, 0, 1, request.subarray(11, 30)),
        frame(types.continuation, flags.endHeaders, 1, request.subarray(30)),
      ],
      expect: "goes on",
    },
    {
      name: "2 interrupted",
      send: [unended, frame(types.continuation, 0, 1), data(1, [1])],
      expect: { goaway: code.protocol },
    },
    {
      name: "3 stream 0",
      send: [unended, frame(types.continuation, flags.endHeaders, 0)],
      expect: { goaway: code.protocol },
    },
    {
      name: "4 after HEADERS with END_HEADERS",
      send: [open, frame(types.continuation, flags.endHeaders, 1)],
      expect: { goaway: code.protocol },
    },
    {
      name: "5 after CONTINUATION with END_HEADERS",
      send: [
        unended,
        frame(types.continuation, flags.endHeaders, 1),
        frame(types.continuation, flags.endHeaders, 1),
      ],
      expect: { goaway: code.protocol },
    },
    {
      name: "6 after DATA",
      send: [
        open,
        data(1, grpcMessage(Buffer.alloc(1))),
        frame(types.continuation, flags.endHeaders, 1),
      ],
      expect: { goaway: code.protocol },
    },
  ],
  "8.1 HTTP Request/Response Exchange": [
    {
      name: "1 second HEADERS without END_STREAM",
      send: [open, headers(1, block([["x-trailer", "1"]]))],
      expect: { reset: code.protocol },
    },
    {
      name: "trailers",
      send: [open, headers(1, block([["x-trailer", "1"]]), flags.end)],
      expect: "goes on",
    },
  ],
  "8.1.2 HTTP Header Fields": [
    {
      name: "1 upper-case name",
      send: [headers(1, withFields(["X-Test", "1"]), flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "line break in a value",
      send: [headers(1, withFields(["x-test", "a\r\nb"]), flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "space at the end of a value",
      send: [headers(1, withFields(["x-test", "a "]), flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "space in a name",
      send: [headers(1, withFields(["x test", "a"]), flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "empty name",
      send: [headers(1, withFields(["", "a"]), flags.end)],
      expect: { reset: code.protocol },
    },
  ],
  "8.1.2.1 Pseudo-Header Fields": [
    {
      name: "1 unknown",
      send: [headers(1, block([[":test", "1"], ...requestFields(holdPath)]))],
      expect: { reset: code.protocol },
    },
    {
      name: "2 of responses",
      send: [headers(1, block([[":status", "200"], ...requestFields(holdPath)]))],
      expect: { reset: code.protocol },
    },
    {
      name: "3 in trailers",
      send: [open, headers(1, block([[":method", "POST"]]), flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "4 after a regular field",
      send: [headers(1, block([["x-test", "1"], ...requestFields(holdPath)]))],
      expect: { reset: code.protocol },
    },
  ],
  "8.1.2.2 Connection-Specific Header Fields": [
    {
      name: "1 connection",
      send: [headers(1, withFields(["connection", "keep-alive"]))],
      expect: { reset: code.protocol },
    },
    {
      name: "transfer-encoding",
      send: [headers(1, withFields(["transfer-encoding", "chunked"]))],
      expect: { reset: code.protocol },
    },
    {
      name: "2 te other than trailers",
      send: [headers(1, withFields(["te", "trailers, deflate"]))],
      expect: { reset: code.protocol },
    },
  ],
  "8.1.2.3 Request Pseudo-Header Fields": [
    {
      name: "1 empty :path",
      send: [headers(1, block(requestFields("")))],
      expect: { reset: code.protocol },
    },
    {
      name: "2 no :method",
      send: [headers(1, without(":method"))],
      expect: { reset: code.protocol },
    },
    {
      name: "3 no :scheme",
      send: [headers(1, without(":scheme"))],
      expect: { reset: code.protocol },
    },
    { name: "4 no :path", send: [headers(1, without(":path"))], expect: { reset: code.protocol } },
    {
      name: "5 :method twice",
      send: [headers(1, twice(":method"))],
      expect: { reset: code.protocol },
    },
    {
      name: "6 :scheme twice",
      send: [headers(1, twice(":scheme"))],
      expect: { reset: code.protocol },
    },
    { name: "7 :path twice", send: [headers(1, twice(":path"))], expect: { reset: code.protocol } },
  ],
  "8.1.2.6 Malformed Requests and Responses": [
    {
      name: "1 content-length other than DATA",
      send: [headers(1, withFields(["content-length", "1"])), data(1, [0, 0], flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "2 content-length other than several DATA",
      send: [
        headers(1, withFields(["content-length", "1"])),
        data(1, [0]),
        data(1, [0], flags.end),
      ],
      expect: { reset: code.protocol },
    },
    {
      name: "content-length more than DATA",
      send: [headers(1, withFields(["content-length", "9"])), data(1, [0], flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "content-length without DATA",
      send: [headers(1, withFields(["content-length", "9"]), flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "no number",
      send: [headers(1, withFields(["content-length", "1x"]), flags.end)],
      expect: { reset: code.protocol },
    },
    {
      name: "two different lengths",
      send: [headers(1, withFields(["content-length", "1"], ["content-length", "2"]))],
      expect: { reset: code.protocol },
    },
    {
      name: "content-length as announced, padding aside",
      send: [
        headers(1, withFields(["content-length", "5"])),
        frame(types.data, flags.end | flags.padded, 1, [2, 0, 0, 0, 0, 0, 9, 9]),
      ],
      expect: "goes on",
    },
  ],
  "8.2 Server Push": [
    {
      name: "1 PUSH_PROMISE",
      send: [open, frame(types.push, flags.endHeaders, 1, Buffer.concat([uint32(2), request]))],
      expect: { goaway: code.protocol },
    },
  ],
  "HPACK 2.3.3 Index Address Space": [
    {
      name: "1 index beyond the tables",
      send: [headers(1, Buffer.from([0xc6]))],
      expect: { goaway: code.compression },
    },
    {
      name: "name of a literal beyond the tables",
      send: [headers(1, Buffer.from([0x7f, 9, 1, 0x61]))],
      expect: { goaway: code.compression },
    },
  ],
  "HPACK 4.2 Maximum Table Size": [
    {
      name: "1 size update after a field",
      send: [headers(1, Buffer.concat([request, Buffer.from([0x21])]))],
      expect: { goaway: code.compression },
    },
  ],
  "HPACK 5.2 String Literal Representation": [
    {
      name: "1 Huffman padding longer than 7 bits",
      send: [
        headers(
          1,
          Buffer.concat([
            request,
            Buffer.from([0, 5]),
            Buffer.from("x-abc"),
            Buffer.from([0x86, 0, 0, 0, 0, 0, 0xff]),
          ]),
        ),
      ],
      expect: { goaway: code.compression },
    },
    {
      name: "2 Huffman padding of zeros",
      send: [
        headers(
          1,
          Buffer.concat([
            request,
            Buffer.from([0, 5]),
            Buffer.from("x-abc"),
            Buffer.from([0x83, 0x50, 0x83, 0xe0]),
          ]),
        ),
      ],
      expect: { goaway: code.compression },
    },
    {
      name: "3 the end-of-string symbol",
      send: [
        headers(
          1,
          Buffer.concat([
            request,
            Buffer.from([0, 5]),
            Buffer.from("x-abc"),
            Buffer.from([0x84, 0xff, 0xff, 0xff, 0xff]),
          ]),
        ),
      ],
      expect: { goaway: code.compression },
    },
    {
      name: "a string longer than the block",
      send: [headers(1, Buffer.from([0, 5, 0x61]))],
      expect: { goaway: code.compression },
    },
    {
      name: "an integer without end",
      send: [headers(1, Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]))],
      expect: { goaway: code.compression },
    },
  ],
  "HPACK 6.1 Indexed Header Field Representation": [
    {
      name: "1 index 0",
      send: [headers(1, Buffer.concat([request, Buffer.from([0x80])]))],
      expect: { goaway: code.compression },
    },
  ],
  "HPACK 6.3 Dynamic Table Size Update": [
    {
      name: "1 above the announced size",
      send: [headers(1, Buffer.concat([Buffer.from([0x3f, 0xe2, 0x1f]), request]))],
      expect: { goaway: code.compression },
    },
    {
      name: "as announced",
      send: [
        headers(1, Buffer.concat([Buffer.from([0x20, 0x3f, 0xe1, 0x1f]), request]), flags.end),
      ],
      expect: "goes on",
    },
  ],
};

let server: H2GrpcServer;
let port: number;

beforeAll(async () => {
  ({ server, port } = await startEchoServer());
});

afterAll(async () => {
  await server.close();
});

for (const [section, cases] of Object.entries(sections)) {
  describe(section, () => {
    test.each(cases.map((one) => [one.name, one] as const))("%s", async (_, one) => {
      const client = await RawH2Client.open(port);
      client.send(...one.send);
      if (one.expect === "goes on") expect(await client.isAlive()).toBe(true);
      else if ("goaway" in one.expect) {
        expect([one.expect.goaway].flat()).toContain(await client.goawayCode());
        expect(client.isClosed).toBe(true);
      } else {
        expect(await client.resetCode(one.expect.streamId ?? 1)).toBe(one.expect.reset);
        expect(await client.isAlive()).toBe(true);
      }
      client.close();
    });
  });
}

describe("3.5 HTTP/2 Connection Preface", () => {
  test("1 the server's first frame is SETTINGS", async () => {
    const client = await RawH2Client.connect(port);
    client.send(preface, settings());
    expect(await client.next(() => true)).toMatchObject({ type: types.settings, flags: 0 });
    client.close();
  });

  test.each([
    ["2 invalid preface", Buffer.from("INVALID CONNECTION PREFACE\r\n\r\n")],
    ["HTTP/1.1", Buffer.from("GET / HTTP/1.1\r\nhost: x\r\n\r\n")],
    [
      "a first frame other than SETTINGS",
      Buffer.concat([preface, frame(types.ping, 0, 0, Buffer.alloc(8))]),
    ],
    [
      "a first frame that acknowledges SETTINGS",
      Buffer.concat([preface, frame(types.settings, flags.ack, 0)]),
    ],
  ])("%s ends the connection", async (_, bytes) => {
    const client = await RawH2Client.connect(port);
    client.send(bytes);
    expect(await client.goawayCode()).toBe(code.protocol);
    client.close();
  });

  test("may come octet by octet", async () => {
    const client = await RawH2Client.connect(port);
    for (const octet of Buffer.concat([preface, settings()])) {
      client.send(Uint8Array.of(octet));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await client.isAlive()).toBe(true);
    client.close();
  });
});

describe("answers", () => {
  test("6.7 PING 1: the same octets come back, acknowledged", async () => {
    const client = await RawH2Client.open(port);
    const octets = Buffer.from("12345678");
    client.send(frame(types.ping, 0, 0, octets));
    const answer = await client.next((f) => f.type === types.ping);
    expect(answer).toMatchObject({ flags: flags.ack, streamId: 0 });
    expect(answer?.payload.equals(octets)).toBe(true);
    client.close();
  });

  test("6.7 PING 2: an acknowledgement is not answered", async () => {
    const client = await RawH2Client.open(port);
    client.send(frame(types.ping, flags.ack, 0, Buffer.from("invalid!")));
    client.send(frame(types.ping, 0, 0, Buffer.from("12345678")));
    const answer = await client.next((f) => f.type === types.ping);
    expect(answer?.payload.toString()).toBe("12345678");
    client.close();
  });

  test("6.5.3 Settings Synchronization 2: every SETTINGS is acknowledged", async () => {
    const client = await RawH2Client.open(port);
    client.send(settings([3, 5]), settings([3, 6]), settings());
    for (let i = 0; i < 3; i++) {
      const ack = await client.next((f) => f.type === types.settings);
      expect(ack).toMatchObject({ flags: flags.ack, streamId: 0 });
    }
    client.close();
  });

  test("6.5.3 Settings Synchronization 1: of several values the last holds", async () => {
    const client = await RawH2Client.open(port, [4, 100], [4, 1]);
    client.send(
      headers(1, block(requestFields(echoPath))),
      data(1, grpcMessage(Buffer.from("hello")), flags.end),
    );
    const piece = await client.next((f) => f.type === types.data);
    expect(piece?.payload).toHaveLength(1);
    client.close();
  });

  test("6.9.1 The Flow-Control Window 1: a window of 1 lets one octet out", async () => {
    const client = await RawH2Client.open(port, [4, 1]);
    client.send(
      headers(1, block(requestFields(echoPath))),
      data(1, grpcMessage(Buffer.from("hello")), flags.end),
    );
    const got: Buffer[] = [];
    for (let i = 0; i < 10; i++) {
      const piece = await client.next((f) => f.type === types.data);
      expect(piece?.payload).toHaveLength(1);
      got.push(piece!.payload);
      client.send(windowUpdate(1, 1));
    }
    expect(Buffer.concat(got).equals(grpcMessage(Buffer.from("hello")))).toBe(true);
    expect((await client.answer(1)).body).toHaveLength(0);
    client.close();
  });

  test("6.9.2 Initial Flow-Control Window Size 1: a change counts for open streams", async () => {
    const client = await RawH2Client.open(port, [4, 0]);
    client.send(
      headers(1, block(requestFields(echoPath))),
      data(1, grpcMessage(Buffer.from("x")), flags.end),
    );
    expect(await client.isAlive()).toBe(true);
    client.send(settings([4, 1]));
    expect((await client.next((f) => f.type === types.data))?.payload).toHaveLength(1);
    client.close();
  });

  test("6.9.2 Initial Flow-Control Window Size 2: a window may become negative", async () => {
    const client = await RawH2Client.open(port, [4, 3]);
    client.send(
      headers(1, block(requestFields(echoPath))),
      data(1, grpcMessage(Buffer.from("hello")), flags.end),
    );
    expect((await client.next((f) => f.type === types.data))?.payload).toHaveLength(3);
    client.send(settings([4, 2]), windowUpdate(1, 2));
    expect((await client.next((f) => f.type === types.data))?.payload).toHaveLength(1);
    client.close();
  });

  test("5.1.2 Stream Concurrency 1: streams above the limit are refused, those within go on", async () => {
    const few = await startEchoServer({ limits: { concurrentStreamsMax: 2 } });
    const client = await RawH2Client.open(few.port);
    client.send(
      headers(1, request),
      headers(3, request),
      headers(5, request),
      data(5, [0], flags.end),
    );
    expect(await client.resetCode(5)).toBe(code.refused);
    client.send(data(1, grpcMessage(Buffer.from("still")), 0));
    expect((await client.next((f) => f.type === types.data))?.streamId).toBe(1);
    expect(few.server.counts()).toMatchObject({ streams: 2, refused: { concurrent_streams: 1 } });
    client.close();
    await few.server.close();
  });

  test("a client whose table shrinks gets a size update before the next field", async () => {
    const client = await RawH2Client.open(port, [1, 0]);
    client.send(headers(1, block(requestFields(echoPath)), flags.end));
    const answer = await client.next((f) => f.type === types.headers);
    expect(answer?.payload[0]).toBe(0x20);
    client.close();
  });

  test("a request with too many header fields gets RESOURCE_EXHAUSTED, and the next one an answer", async () => {
    const client = await RawH2Client.open(port);
    const many = Array.from({ length: 250 }, (): [string, string] => ["x", ""]);
    client.send(headers(1, block([...requestFields(echoPath), ...many]), flags.end));
    expect(fieldsOf((await client.answer(1)).trailers)).toMatchObject({ "grpc-status": "8" });
    client.send(headers(3, block(requestFields(echoPath)), flags.end));
    expect(fieldsOf((await client.answer(3)).trailers)).toMatchObject({ "grpc-status": "0" });
    client.close();
  });

  test("messages above the server's memory get RESOURCE_EXHAUSTED, those that fit go on", async () => {
    const small = await startEchoServer({ limits: { bufferedBytesMax: 16_384 } });
    const client = await RawH2Client.open(small.port);
    const request = block(requestFields(echoPath));
    const message = grpcMessage(Buffer.alloc(7_000, 1));
    client.send(headers(1, request), data(1, message.subarray(0, 10)));
    client.send(headers(3, request), data(3, message.subarray(0, 10)));
    client.send(headers(5, request), data(5, message.subarray(0, 10)));
    expect(fieldsOf((await client.answer(5)).trailers)).toMatchObject({ "grpc-status": "8" });
    client.send(data(1, message.subarray(10), flags.end));
    expect((await client.answer(1)).body.equals(message)).toBe(true);
    client.send(headers(7, request), data(7, message.subarray(0, 10)));
    client.send(data(7, message.subarray(10), flags.end));
    expect((await client.answer(7)).body.equals(message)).toBe(true);
    client.close();
    await until(() => small.server.counts().connections === 0);
    expect(small.server.counts()).toMatchObject({ bufferedBytes: 0, refused: { memory_full: 1 } });
    await small.server.close();
  });

  test("a request that ends inside a message gets INTERNAL", async () => {
    const client = await RawH2Client.open(port);
    client.send(headers(1, block(requestFields(echoPath))), data(1, [0, 0, 0, 0, 9, 1], flags.end));
    const { trailers } = await client.answer(1);
    expect(fieldsOf(trailers)).toMatchObject({ ":status": "200", "grpc-status": "13" });
    client.close();
  });

  test.each([
    ["GET", [[":method", "GET"]], "405"],
    ["a request that is not gRPC", [["content-type", "application/json"]], "415"],
  ] as const)("%s gets an HTTP status", async (_, changes, status) => {
    const client = await RawH2Client.open(port);
    const changed = new Map<string, string>(changes);
    const fields = requestFields(echoPath).map(
      ([name, value]) => [name, changed.get(name) ?? value] as const,
    );
    client.send(headers(1, block(fields), flags.end));
    const { trailers } = await client.answer(1);
    expect(fieldsOf(trailers)).toEqual({ ":status": status });
    client.close();
  });
});
