import { encodeHeaderBlock } from "../../core/hpack/block-writer.ts";

/** gRPC status codes that the server itself gives. */
export const grpcStatus = {
  ok: 0,
  deadlineExceeded: 4,
  notFound: 5,
  permissionDenied: 7,
  resourceExhausted: 8,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
} as const;

/** Further trailers of an answer. */
export type GrpcMetadata = readonly (readonly [name: string, value: string])[];

const answerFields: GrpcMetadata = [
  [":status", "200"],
  ["content-type", "application/grpc"],
];

/** Headers of every answer that has messages. */
export const answerBlock = encodeHeaderBlock(answerFields);
/** Trailers of a call that went well. */
export const okTrailers = encodeHeaderBlock([["grpc-status", "0"]]);

const utf8 = new TextEncoder();

/** A status text as gRPC sends it: UTF-8, everything but visible ASCII and space percent-encoded. */
export function encodeGrpcMessage(text: string): string {
  let encoded = "";
  for (const octet of utf8.encode(text)) {
    if (octet >= 0x20 && octet <= 0x7e && octet !== 0x25) encoded += String.fromCharCode(octet);
    else encoded += `%${octet.toString(16).toUpperCase().padStart(2, "0")}`;
  }
  return encoded;
}

/** Longest status text sent, characters of the encoded form; the rest is cut. */
const messageCharactersMax = 1_024;

/** The fields that end a call, `isOnly` with the answer's headers in front since none were sent. */
export function trailerBlock(
  status: number,
  message: string | undefined,
  metadata: GrpcMetadata,
  isOnly: boolean,
): Uint8Array {
  if (status === 0 && message === undefined && metadata.length === 0 && !isOnly) return okTrailers;
  const fields: (readonly [string, string])[] = isOnly ? [...answerFields] : [];
  fields.push(["grpc-status", status.toString()]);
  if (message !== undefined && message !== "") {
    let text = encodeGrpcMessage(message);
    if (text.length > messageCharactersMax) {
      text = text.slice(0, messageCharactersMax).replace(/%.?$/, "");
    }
    fields.push(["grpc-message", text]);
  }
  fields.push(...metadata);
  return encodeHeaderBlock(fields);
}

/** An answer to a request that is not gRPC: a plain HTTP status. */
export function httpStatusBlock(status: number): Uint8Array {
  return encodeHeaderBlock([[":status", status.toString()]]);
}

const unitMs: Readonly<Record<string, number>> = {
  H: 3_600_000,
  M: 60_000,
  S: 1_000,
  m: 1,
  u: 0.001,
  n: 0.000_001,
};

/** A `grpc-timeout` in ms, or undefined when it is not one. */
export function parseGrpcTimeout(text: string): number | undefined {
  const match = /^(\d{1,8})([HMSmun])$/.exec(text);
  if (match === null) return undefined;
  return Number(match[1]) * (unitMs[match[2] as string] as number);
}
