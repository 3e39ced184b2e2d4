import { defaultFrameBytesMax, frameFlag, frameType } from "./codes.ts";
import { frameSizeFault, protocolFault, type Fault } from "./faults.ts";

/** Where a frame type may stand and how long its payload is (RFC 9113 §6). */
interface FrameRule {
  readonly name: string;
  /** Whether it belongs to the connection (stream 0), to a stream, or to either. */
  readonly place: "connection" | "stream" | "either";
  readonly bytesMin: number;
  readonly bytesMax: number;
}

const rules: readonly FrameRule[] = [
  { name: "DATA", place: "stream", bytesMin: 0, bytesMax: defaultFrameBytesMax },
  { name: "HEADERS", place: "stream", bytesMin: 0, bytesMax: defaultFrameBytesMax },
  // A wrong length of PRIORITY is an error of its stream, judged with it.
  { name: "PRIORITY", place: "stream", bytesMin: 0, bytesMax: defaultFrameBytesMax },
  { name: "RST_STREAM", place: "stream", bytesMin: 4, bytesMax: 4 },
  { name: "SETTINGS", place: "connection", bytesMin: 0, bytesMax: defaultFrameBytesMax },
  { name: "PUSH_PROMISE", place: "stream", bytesMin: 4, bytesMax: defaultFrameBytesMax },
  { name: "PING", place: "connection", bytesMin: 8, bytesMax: 8 },
  { name: "GOAWAY", place: "connection", bytesMin: 8, bytesMax: defaultFrameBytesMax },
  { name: "WINDOW_UPDATE", place: "either", bytesMin: 4, bytesMax: 4 },
  { name: "CONTINUATION", place: "stream", bytesMin: 0, bytesMax: defaultFrameBytesMax },
];

/** Judges a frame's header by what needs no memory of the connection. */
export function checkFrame(
  type: number,
  flags: number,
  streamId: number,
  length: number,
): Fault | undefined {
  if (length > defaultFrameBytesMax) return frameSizeFault(`frame of ${length} bytes`);
  const rule = rules[type];
  if (rule === undefined) return undefined;
  if (rule.place !== "either" && (rule.place === "stream") !== streamId > 0) {
    return protocolFault(`${rule.name} on stream ${streamId}`);
  }
  if (length < rule.bytesMin || length > rule.bytesMax) {
    return frameSizeFault(`${rule.name} of ${length} bytes`);
  }
  if (type === frameType.settings) {
    const isAck = (flags & frameFlag.ack) !== 0;
    if (isAck ? length > 0 : length % 6 !== 0) return frameSizeFault(`SETTINGS of ${length} bytes`);
  }
  if (type === frameType.pushPromise) return protocolFault("PUSH_PROMISE from a client");
  return undefined;
}
