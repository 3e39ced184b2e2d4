/** Names of the numbers of HTTP/2 (RFC 9113 §6 and §7). */

/** Frame types. */
export const frameType = {
  data: 0,
  headers: 1,
  priority: 2,
  rstStream: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;

/** Frame flags; `ack` belongs to SETTINGS and PING, the rest to DATA and HEADERS. */
export const frameFlag = {
  endStream: 0x1,
  ack: 0x1,
  endHeaders: 0x4,
  padded: 0x8,
  priority: 0x20,
} as const;

/** Error codes of RST_STREAM and GOAWAY. */
export const h2Error = {
  none: 0x0,
  protocol: 0x1,
  internal: 0x2,
  flowControl: 0x3,
  settingsTimeout: 0x4,
  streamClosed: 0x5,
  frameSize: 0x6,
  refusedStream: 0x7,
  cancel: 0x8,
  compression: 0x9,
  connect: 0xa,
  enhanceYourCalm: 0xb,
  inadequateSecurity: 0xc,
  http11Required: 0xd,
} as const;

/** Identifiers of SETTINGS parameters. */
export const settingId = {
  headerTableSize: 1,
  enablePush: 2,
  maxConcurrentStreams: 3,
  initialWindowSize: 4,
  maxFrameSize: 5,
  maxHeaderListSize: 6,
} as const;

/** What a client sends before its first frame, in ASCII (RFC 9113 §3.4). */
export const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/** Bytes of every frame's header. */
export const frameHeaderBytes = 9;
/** Largest payload that needs no agreement, and the one this server announces. */
export const defaultFrameBytesMax = 16_384;
/** Windows of both kinds at the start of a connection. */
export const defaultWindowBytes = 65_535;
/** Windows, stream ids and increments stay at or below this. */
export const int31Max = 0x7fff_ffff;
