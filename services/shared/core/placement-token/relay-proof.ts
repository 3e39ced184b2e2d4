import { ByteWriter } from "./byte-writer.ts";

/** What a relay's proof covers. */
export interface RelayProofInput {
  readonly relay: string;
  /** Start of the relay, ms since 1970. */
  readonly epoch: number;
  /** Where it serves HTTP/2 and gRPC, ip:port, and HTTP/1.1. */
  readonly h2Address: string;
  readonly httpAddress: string;
  /** Nonce of the router's challenge. */
  readonly nonce: Uint8Array;
}

/**
 * The message whose HMAC-SHA-256 under a join key shows a router that a relay belongs to the mesh: a label, then the
 * fields, each behind its length, so that no two inputs give the same bytes.
 */
export function relayProofMessage(input: RelayProofInput): Uint8Array {
  const out = new ByteWriter();
  out.text("kvmesh-relay-v1");
  out.text(input.relay);
  out.count(input.epoch);
  out.text(input.h2Address);
  out.text(input.httpAddress);
  out.count(input.nonce.length);
  out.raw(input.nonce);
  return out.written();
}

/** What a relay's proof to another relay covers. */
export interface MirrorProofInput {
  readonly relay: string;
  /** Start of the relay, ms since 1970. */
  readonly epoch: number;
  /** Minutes since 1970; at most 2 off. */
  readonly minute: number;
}

/** The message whose HMAC-SHA-256 under a join key shows a relay that another one belongs to the mesh. */
export function mirrorProofMessage(input: MirrorProofInput): Uint8Array {
  const out = new ByteWriter();
  out.text("kvmesh-mirror-v1");
  out.text(input.relay);
  out.count(input.epoch);
  out.count(input.minute);
  return out.written();
}
