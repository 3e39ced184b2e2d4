import { connect, constants, type ClientHttp2Session, type IncomingHttpHeaders } from "node:http2";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodeHeaderBlock } from "../../services/shared/core/hpack/block-writer.ts";
import { HpackDecoder } from "../../services/shared/core/hpack/decoder.ts";
import {
  decodeHuffman,
  encodeHuffman,
  huffmanBytes,
} from "../../services/shared/core/hpack/huffman.ts";
import { staticTable } from "../../services/shared/core/hpack/static-table.ts";
import type { H2GrpcServer } from "../../services/shared/edge/h2/h2-grpc-server.ts";
import type { GrpcStream } from "../../services/shared/edge/h2/grpc-stream.ts";
import { ReferenceHpackEncoder, type WrittenField } from "../support/hpack-encoder.ts";
import { startEchoServer } from "../support/h2-servers.ts";

const limits = { tableBytesMax: 4_096, listBytesMax: 1 << 20, fieldsMax: 10_000 };

/** Strings of octets, one per character, up to a few hundred long. */
const octets = fc
  .uint8Array({ maxLength: 300 })
  .map((bytes) => Buffer.from(bytes).toString("latin1"));

/** Few distinct fields, so that tables are hit, and some that are new. */
const field = fc.oneof(
  fc.constantFrom(...staticTable),
  fc.tuple(fc.constantFrom("x-a", "x-b", "traceparent"), fc.constantFrom("", "1", "a".repeat(200))),
  fc.tuple(octets, octets),
);

const written: fc.Arbitrary<WrittenField> = fc
  .record({
    field,
    as: fc.constantFrom(
      "indexed" as const,
      "incremental" as const,
      "unindexed" as const,
      "never" as const,
    ),
    isHuffman: fc.boolean(),
    usesName: fc.boolean(),
  })
  .map(({ field: [name, value], ...how }) => ({ name, value, ...how }));

const blocks = fc.array(
  fc.record({
    fields: fc.array(written, { maxLength: 20 }),
    resizes: fc.oneof(
      { weight: 5, arbitrary: fc.constant<number[]>([]) },
      fc.array(fc.integer({ min: 0, max: 4_096 }), { maxLength: 2 }),
    ),
    times: fc.integer({ min: 1, max: 3 }),
  }),
  { maxLength: 12 },
);

function pairs(decoder: HpackDecoder, bytes: Buffer): (readonly [string, string])[] {
  const list = decoder.decode(bytes, 0, bytes.length);
  if (list === undefined) throw new Error(decoder.error);
  return list.fields.map(({ name, value }) => [name, value] as const);
}

describe("the Huffman code", () => {
  test("gives back what was encoded, in the length foretold", () => {
    fc.assert(
      fc.property(octets, (text) => {
        const coded = new Uint8Array(huffmanBytes(text));
        expect(encodeHuffman(text, coded, 0)).toBe(coded.length);
        const decoded = new Uint8Array(text.length + 8);
        const length = decodeHuffman(coded, 0, coded.length, decoded);
        expect(Buffer.from(decoded.subarray(0, length)).toString("latin1")).toBe(text);
      }),
    );
  });

  test("is that of RFC 7541 Appendix C.4", () => {
    const coded = Buffer.from("f1e3c2e5f23a6ba0ab90f4ff", "hex");
    const decoded = new Uint8Array(32);
    const length = decodeHuffman(coded, 0, coded.length, decoded);
    expect(Buffer.from(decoded.subarray(0, length)).toString()).toBe("www.example.com");
  });
});

describe("a header block", () => {
  test("gives back what an encoder with every representation wrote, block after block", () => {
    fc.assert(
      fc.property(blocks, (sequence) => {
        const encoder = new ReferenceHpackEncoder(limits.tableBytesMax);
        const decoder = new HpackDecoder(limits);
        for (const { fields, resizes, times } of sequence) {
          for (let i = 0; i < times; i++) {
            const expected = fields.map(({ name, value }) => [name, value]);
            expect(pairs(decoder, encoder.encode(fields, resizes))).toEqual(expected);
          }
        }
      }),
      { numRuns: 300 },
    );
  });

  test("gives back what the server's own writer wrote", () => {
    fc.assert(
      fc.property(fc.array(field, { maxLength: 20 }), (fields) => {
        expect(pairs(new HpackDecoder(limits), Buffer.from(encodeHeaderBlock(fields)))).toEqual(
          fields,
        );
      }),
    );
  });

  test("never throws, whatever the octets, and never grows beyond its limits", () => {
    const small = { tableBytesMax: 256, listBytesMax: 1_000, fieldsMax: 8 };
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 8 }), (parts) => {
        const decoder = new HpackDecoder(small);
        for (const part of parts) {
          const list = decoder.decode(part, 0, part.length);
          if (list === undefined) {
            expect(decoder.error).not.toBe("");
            return;
          }
          expect(list.fields.length).toBeLessThanOrEqual(small.fieldsMax);
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test("reads the requests of RFC 7541 Appendix C.3 and C.4", () => {
    const requests = [
      ["828684410f7777772e6578616d706c652e636f6d", "828684418cf1e3c2e5f23a6ba0ab90f4ff"],
      ["828684be58086e6f2d6361636865", "828684be5886a8eb10649cbf"],
      [
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
      ],
    ];
    for (const variant of [0, 1]) {
      const decoder = new HpackDecoder(limits);
      const read = requests.map((hex) => pairs(decoder, Buffer.from(hex[variant]!, "hex")));
      expect(read[0]).toEqual([
        [":method", "GET"],
        [":scheme", "http"],
        [":path", "/"],
        [":authority", "www.example.com"],
      ]);
      expect(read[1]?.at(-1)).toEqual(["cache-control", "no-cache"]);
      expect(read[2]).toEqual([
        [":method", "GET"],
        [":scheme", "https"],
        [":path", "/index.html"],
        [":authority", "www.example.com"],
        ["custom-key", "custom-value"],
      ]);
    }
  });
});

describe("node:http2, which is nghttp2", () => {
  let server: H2GrpcServer;
  let session: ClientHttp2Session;
  let seen: GrpcStream | undefined;
  let answer: readonly (readonly [string, string])[] = [];
  const path = "/kvmesh.test.Headers/Echo";

  beforeAll(async () => {
    const started = await startEchoServer({
      methods: new Map([
        [
          path,
          (stream) => {
            seen = stream;
            return {
              onMessage: () => undefined,
              onHalfClose: () => {
                stream.end(0, undefined, answer);
              },
              onClose: () => undefined,
            };
          },
        ],
      ]),
    });
    ({ server } = started);
    session = connect(`http://127.0.0.1:${started.port.toString()}`);
  });

  afterAll(async () => {
    session.destroy();
    await server.close();
  });

  function call(headers: Record<string, string>): Promise<IncomingHttpHeaders> {
    return new Promise((resolve, reject) => {
      const stream = session.request({
        [constants.HTTP2_HEADER_METHOD]: "POST",
        [constants.HTTP2_HEADER_PATH]: path,
        "content-type": "application/grpc",
        te: "trailers",
        ...headers,
      });
      stream.on("response", resolve);
      stream.on("error", reject);
      stream.resume();
      stream.end();
    });
  }

  const name = fc.stringMatching(/^x-[a-z0-9]{1,6}$/);
  const value = fc.stringMatching(/^[!-~]([ -~]{0,120}[!-~])?$/);
  const dictionary = fc.dictionary(
    fc.oneof(fc.constantFrom("traceparent", "authorization", "x-same"), name),
    fc.oneof(fc.constantFrom("same", "other"), value),
    { maxKeys: 8 },
  );

  test("is understood, with its dynamic table, and understands", async () => {
    await fc.assert(
      fc.asyncProperty(dictionary, dictionary, async (sent, returned) => {
        answer = Object.entries(returned);
        const headers = await call(sent);
        for (const [key, text] of Object.entries(sent)) expect(seen?.header(key)).toBe(text);
        expect(seen?.header("x-absent")).toBeUndefined();
        for (const [key, text] of answer) expect(headers[key]).toBe(text);
        expect(headers["grpc-status"]).toBe("0");
      }),
      { numRuns: 300 },
    );
  });
});
