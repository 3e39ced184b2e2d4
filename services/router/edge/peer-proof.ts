import { createHmac } from "node:crypto";
import { ByteWriter } from "../../shared/core/placement-token/byte-writer.ts";

/** What the proof in a router's welcome covers. */
export interface WelcomeProofInput {
  /** The router that welcomes. */
  readonly instance: string;
  readonly epoch: bigint;
  /** The router that dialled, by the instance in its hello. */
  readonly caller: string;
  /** Nonce of that hello. */
  readonly nonce: Uint8Array;
}

/**
 * Shows a router that dialled another that it has reached one with the same peer key. HMAC-SHA-256 over a label of its own,
 * so that no proof of a hello can stand for it, and the fields, each behind its length.
 */
export function welcomeProof(key: Buffer, input: WelcomeProofInput): Buffer {
  const out = new ByteWriter();
  out.text("kvmesh-peer-welcome-v1");
  out.text(input.instance);
  out.text(String(input.epoch));
  out.text(input.caller);
  out.count(input.nonce.length);
  out.raw(input.nonce);
  return createHmac("sha256", key).update(out.written()).digest();
}
