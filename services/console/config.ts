import { z } from "zod";
import { parseCidr } from "../shared/core/cidr.ts";
import { logLevels } from "../shared/edge/log.ts";

const port = z.number().int().min(0).max(65_535);

/** Settings of the console. Every number carries its unit; unknown keys are refused. */
export const ConsoleConfig = z.strictObject({
  /** Name of this process in logs. */
  instance: z.string().min(1).default("console"),
  logLevel: z.enum(logLevels).default("info"),
  /** Address that all ports bind. */
  host: z.string().min(1).default("127.0.0.1"),
  /** Query API, metrics and health. */
  httpPort: port.default(8088),
  otlp: z
    .strictObject({
      grpcPort: port.default(4317),
      httpPort: port.default(4318),
      /** Whether gRPC reflection is served. */
      reflection: z.boolean().default(true),
      /** Who may send spans and ask for traces. */
      allowedCidrs: z
        .array(
          z.string().refine((text) => parseCidr(text) !== undefined, {
            message: "must be an address range such as 127.0.0.0/8",
          }),
        )
        .min(1)
        .default(["127.0.0.0/8", "::1/128"]),
      /** Largest message, after decompression. */
      messageBytesMax: z
        .number()
        .int()
        .min(65_536)
        .max(268_435_456)
        .default(16 * 1024 * 1024),
      /** Bodies being read over HTTP at one time, all together. */
      bodiesBytesMax: z
        .number()
        .int()
        .min(65_536)
        .max(1_073_741_824)
        .default(64 * 1024 * 1024),
    })
    .prefault({}),
  queue: z
    .strictObject({
      spansMax: z.number().int().min(1).max(1_000_000).default(32_768),
      bytesMax: z
        .number()
        .int()
        .min(65_536)
        .max(1_073_741_824)
        .default(64 * 1024 * 1024),
    })
    .prefault({}),
  store: z
    .strictObject({
      /** Folder of `traces.sqlite`; `memory` keeps traces in memory only (a folder of that name is `./memory`). */
      stateDir: z.string().min(1).default(".kvmesh/console"),
      tracesMax: z.number().int().min(1).max(1_000_000).default(10_000),
      /** Bytes of spans kept; the file is larger by its indexes, about a third. */
      bytesMax: z
        .number()
        .int()
        .min(1_048_576)
        .max(1_099_511_627_776)
        .default(512 * 1024 * 1024),
      spansPerTraceMax: z.number().int().min(1).max(100_000).default(512),
      /** Spans written in one transaction. */
      batchSpansMax: z.number().int().min(1).max(10_000).default(512),
      /** Longest time that a span waits for its batch. */
      flushIntervalMs: z.number().int().min(1).max(10_000).default(50),
    })
    .prefault({}),
  span: z
    .strictObject({
      /** Longest attribute value, UTF-16 units; longer ones are cut. */
      valueLengthMax: z.number().int().min(16).max(1_048_576).default(4_096),
      /** Attributes of a span, of an event, of a link, and items of a list. */
      attributesMax: z.number().int().min(1).max(10_000).default(128),
      eventsMax: z.number().int().min(0).max(10_000).default(128),
      linksMax: z.number().int().min(0).max(10_000).default(32),
    })
    .prefault({}),
});

/** Settings of the console. */
export type ConsoleConfig = z.infer<typeof ConsoleConfig>;
