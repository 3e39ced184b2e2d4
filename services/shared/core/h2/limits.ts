/** Every bound of a connection. Sizes are bytes, times ms. */
export interface H2Limits {
  /** Streams a client may have open at once; further ones are refused and may be tried again. */
  readonly concurrentStreamsMax: number;
  /** What a client may send on one stream ahead of our updates. */
  readonly streamWindowBytes: number;
  /** The same over all streams of a connection. */
  readonly connectionWindowBytes: number;
  /** Dynamic table of header compression. */
  readonly headerTableBytesMax: number;
  /** Header list of a request, as RFC 9113 §6.5.2 counts it. */
  readonly headerListBytesMax: number;
  readonly headerFieldsMax: number;
  /** One encoded header block over all its frames. */
  readonly headerBlockBytesMax: number;
  /** CONTINUATION frames of one header block. */
  readonly continuationsMax: number;
  /** What may wait on one stream for the client's window; above it the stream is reset. */
  readonly streamQueueBytesMax: number;
  /** Output not yet taken by the socket above which messages wait in their stream's queue. */
  readonly outputBytesHigh: number;
  /** From the first byte of a connection to its whole preface with SETTINGS. */
  readonly prefaceMsMax: number;
  /** From the start of a connection to the acknowledgement of our SETTINGS; until then 1,024 streams are taken. */
  readonly settingsMsMax: number;
  /** From the first byte of a frame or header block (DATA excepted) to its last. */
  readonly headerBlockMsMax: number;
  /** A client silent for this long is asked for a sign of life. */
  readonly keepaliveMs: number;
  /** How long the answer to that may take. */
  readonly keepaliveTimeoutMs: number;
  /** A connection without streams is closed after this long; 0 keeps it. */
  readonly idleMsMax: number;
  /** How long queued output of a connection or stream may make no progress. */
  readonly sendStallMsMax: number;
  /** How often each suspicious frame may come: how many at once, and how many more a second. */
  readonly floods: Readonly<Record<FloodKind, Allowance>>;
}

/** A token bucket's size and refill. */
export interface Allowance {
  readonly burst: number;
  readonly perSecond: number;
}

/**
 * What costs a server more than a client. `rapid_reset`: streams that the client cancels before any answer, earned
 * back by streams that end well. `stream_errors`: streams that end in an error of the client, requests above the limit included.
 */
export type FloodKind =
  | "rapid_reset"
  | "stream_errors"
  | "settings_flood"
  | "ping_flood"
  | "empty_data_flood"
  | "priority_flood"
  | "window_update_flood"
  | "unknown_frame_flood";

/** Generous for a busy proxy, far below what an attack needs. */
export const defaultH2Limits: H2Limits = {
  concurrentStreamsMax: 256,
  streamWindowBytes: 4 << 20,
  connectionWindowBytes: 16 << 20,
  headerTableBytesMax: 4_096,
  headerListBytesMax: 64 << 10,
  headerFieldsMax: 200,
  headerBlockBytesMax: 64 << 10,
  continuationsMax: 16,
  streamQueueBytesMax: 8 << 20,
  outputBytesHigh: 1 << 20,
  prefaceMsMax: 5_000,
  settingsMsMax: 10_000,
  headerBlockMsMax: 5_000,
  keepaliveMs: 30_000,
  keepaliveTimeoutMs: 10_000,
  idleMsMax: 0,
  sendStallMsMax: 60_000,
  floods: {
    rapid_reset: { burst: 1_000, perSecond: 100 },
    stream_errors: { burst: 500, perSecond: 50 },
    settings_flood: { burst: 64, perSecond: 4 },
    ping_flood: { burst: 200, perSecond: 20 },
    empty_data_flood: { burst: 1_000, perSecond: 200 },
    priority_flood: { burst: 2_000, perSecond: 500 },
    window_update_flood: { burst: 8_000, perSecond: 2_000 },
    unknown_frame_flood: { burst: 200, perSecond: 20 },
  },
};
