import { badRequest } from "./vllm-error.ts";
import { text, type JsonObject } from "./request-body.ts";

/** Faults that a running engine can be told to have. Times in ms, ratios 0 to 1. */
export type Fault =
  /** The engine core dies: streams get an error, then the process exits 1. */
  | { readonly kind: "crash" }
  /** No step is made for `ms`; HTTP goes on. */
  | { readonly kind: "freeze"; readonly ms: number }
  /** Steps take `factor` times as long for `ms`. */
  | { readonly kind: "slow"; readonly factor: number; readonly ms: number }
  /** This share of the event batches is not sent for `ms`; replay still has them. */
  | { readonly kind: "drop_events"; readonly ratio: number; readonly ms: number }
  /** As many malformed event messages are sent at once. */
  | { readonly kind: "garbage_events"; readonly count: number }
  /** The next `count` streams are cut inside their third chunk. */
  | { readonly kind: "truncate_stream"; readonly count: number }
  /** The next `count` completion requests get a 500. */
  | { readonly kind: "error_500"; readonly count: number }
  /** The next `count` chunks of KV leave with one bit turned over. */
  | { readonly kind: "kv_flip"; readonly count: number }
  /** The next `count` connections that send KV are cut after a chunk. */
  | { readonly kind: "kv_cut"; readonly count: number }
  /** No KV is sent for `ms`. */
  | { readonly kind: "kv_stall"; readonly ms: number }
  /** All links from here have this shape from now on. */
  | { readonly kind: "kv_link"; readonly bytesPerS: number; readonly latencyMs: number };

/** Kinds accepted by `POST /sim/faults`. */
export const faultKinds = [
  "crash",
  "freeze",
  "slow",
  "drop_events",
  "garbage_events",
  "truncate_stream",
  "error_500",
  "kv_flip",
  "kv_cut",
  "kv_stall",
  "kv_link",
] as const satisfies readonly Fault["kind"][];

/** Reads the body of `POST /sim/faults`, or throws a 400 that names the field and its range. */
export function parseFault(body: JsonObject): Fault {
  const kind = text(body, "kind") as Fault["kind"] | undefined;
  switch (kind) {
    case "crash":
      return { kind };
    case "freeze":
    case "kv_stall":
      return { kind, ms: within(body, "ms", 1, 600_000) };
    case "kv_link":
      return {
        kind,
        bytesPerS: within(body, "bytesPerS", 0, 1e12),
        latencyMs: within(body, "latencyMs", 0, 10_000),
      };
    case "slow":
      return {
        kind,
        factor: within(body, "factor", 0.01, 1_000),
        ms: within(body, "ms", 1, 600_000),
      };
    case "drop_events":
      return { kind, ratio: within(body, "ratio", 0, 1), ms: within(body, "ms", 1, 600_000) };
    case "garbage_events":
    case "truncate_stream":
    case "error_500":
    case "kv_flip":
    case "kv_cut":
      return { kind, count: Math.floor(within(body, "count", 1, 10_000)) };
    case undefined:
      break;
  }
  throw badRequest(`kind must be one of ${faultKinds.join(", ")}`, "kind");
}

function within(body: JsonObject, field: string, min: number, max: number): number {
  const value = body[field];
  if (typeof value !== "number" || !(value >= min && value <= max)) {
    throw badRequest(`${field} must be a number from ${String(min)} to ${String(max)}`, field);
  }
  return value;
}

/**
 * Five ways in which an event message can be wrong, in turn: random payload, right msgpack of the wrong shape, an
 * unknown event, a sequence frame of the wrong size, a missing frame. `at` counts messages.
 */
export function garbageFrames(at: number, topic: Buffer, sequence: Buffer): Buffer[] {
  switch (at % 5) {
    case 0:
      return [
        topic,
        sequence,
        Buffer.from(Array.from({ length: 64 }, (_, i) => (i * 197 + at * 31) & 0xff)),
      ];
    case 1:
      return [topic, sequence, Buffer.from([0x93, 0xa1, 0x78, 0x81, 0xa1, 0x61, 0x01, 0xc0])];
    case 2:
      return [
        topic,
        sequence,
        Buffer.from("93cb41d954fc402000009191a9426c6f636b4d6f6f6e00", "hex"),
      ];
    case 3:
      return [topic, sequence.subarray(0, 5), Buffer.from([0x90])];
    default:
      return [topic, sequence];
  }
}
