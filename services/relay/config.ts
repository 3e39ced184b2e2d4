import { z } from "zod";
import { parseCidr } from "../shared/core/cidr.ts";
import { parseEndpoint } from "../shared/core/endpoint.ts";
import { logLevels } from "../shared/edge/log.ts";

const port = z.number().int().min(0).max(65_535);
const milliseconds = z.number().int().positive();
const hostPort = z.string().refine((text) => parseEndpoint(text) !== undefined, {
  message: "must be host:port, such as 127.0.0.1:9003",
});
const cidr = z.string().refine((text) => parseCidr(text) !== undefined, {
  message: "must be an address range, such as 10.0.0.0/8",
});
const loopback = ["127.0.0.0/8", "::1/128"];

/** Settings of the relay. Every number carries its unit; unknown keys are refused. */
export const RelayConfig = z.strictObject({
  /** Name, stable for ever; part of what routers and other relays know it by. */
  instance: z
    .string()
    .regex(/^[A-Za-z0-9._:-]{1,64}$/, "must be 1 to 64 characters of [A-Za-z0-9._:-]")
    .default("relay-0"),
  logLevel: z.enum(logLevels).default("info"),
  /** Address that all ports bind. */
  host: z.string().min(1).default("127.0.0.1"),
  /** Address under which routers and other relays reach it; the default is `host`. */
  advertise: z.string().min(1).optional(),
  /** HTTP/2 with prior knowledge, and gRPC. */
  h2Port: port.default(9100),
  /** HTTP/1.1. */
  httpPort: port.default(9101),
  /** Metrics and health. */
  metricsPort: port.default(9104),
  /** The mesh's secrets; made by `kvmesh up`. */
  keysFile: z.string().min(1).default(".kvmesh/mesh.keys"),
  /** OTLP over gRPC, such as http://127.0.0.1:4317; empty: no traces. */
  otlpEndpoint: z.string().default(""),
  /** Longest time that a stop waits for open streams. */
  drainMsMax: milliseconds.default(30_000),
  routers: z
    .strictObject({
      /** Control ports of routers. */
      list: z.array(hostPort).max(64).default([]),
      /** Name and port behind which routers are found; resolved again every 5 s. */
      dns: hostPort.optional(),
    })
    .prefault({ list: ["127.0.0.1:9003"] }),
  engines: z
    .strictObject({
      /** Ranges in which engine addresses must lie, whatever a placement says. */
      allowedCidrs: z.array(cidr).max(64).default(loopback),
      /** Engines known at once; the one unused for longest makes room. */
      max: z.number().int().min(1).max(65_536).default(1_024),
      /** Legs open at one engine; further ones are refused with 503. */
      legsMax: z.number().int().min(1).max(1_000_000).default(4_096),
      /** Tokens of hand-offs that wait to be pulled at one prefill engine; above it decode prefills itself. */
      handoffTokensMax: z.number().int().min(1).max(1_000_000_000).default(1_048_576),
      /** How long an engine holds a hand-off that nobody pulls (vLLM: kv_lease_duration). */
      handoffLeaseMs: milliseconds.default(30_000),
    })
    .prefault({}),
  callers: z
    .strictObject({
      /** Who may call Inference. */
      inference: z.array(cidr).max(64).default(loopback),
      /** Who may mirror streams here: the other relays. */
      mirror: z.array(cidr).max(64).default(loopback),
    })
    .prefault({}),
  deadlines: z
    .strictObject({
      /** A client's whole body. */
      bodyMs: milliseconds.default(30_000),
      connectMs: milliseconds.default(2_000),
      /** The answer of a prefill leg. */
      prefillMs: milliseconds.default(120_000),
      /** The first byte of an answer. */
      firstByteMs: milliseconds.default(120_000),
      /** The next bytes of a stream that is not guarded. */
      silenceMs: milliseconds.default(120_000),
      /** A client that takes nothing of what waits for it. */
      slowReaderMs: milliseconds.default(120_000),
      /** A whole request. */
      requestMs: milliseconds.default(3_600_000),
      /** The first tokens of a guarded stream wait so long for its buddy to confirm it; then they go out without a name. */
      mirrorMs: milliseconds.default(200),
      /** Asking a router for another engine. */
      placeMs: milliseconds.default(2_000),
    })
    .prefault({}),
  limits: z
    .strictObject({
      /** Requests open at once; further ones are refused with 503. */
      requestsMax: z.number().int().min(1).max(1_000_000).default(20_000),
      bodyBytesMax: z.number().int().min(1_024).max(1_073_741_824).default(67_108_864),
      /** Bodies held at once, all requests. */
      bodyMemoryBytesMax: z.number().int().min(65_536).max(8_589_934_592).default(268_435_456),
      /** Bytes that wait for one client before its engine is not read any more. */
      clientBufferBytesMax: z.number().int().min(1_024).max(16_777_216).default(65_536),
      /** Bytes kept of other relays' streams, all of them. */
      mirrorBytesMax: z.number().int().min(65_536).max(8_589_934_592).default(268_435_456),
      /** Engines, or pairs of them, that one request is tried on before its first byte. */
      placementsMax: z.number().int().min(1).max(8).default(3),
    })
    .prefault({}),
});

/** Effective settings of the relay. */
export type RelayConfig = z.infer<typeof RelayConfig>;
