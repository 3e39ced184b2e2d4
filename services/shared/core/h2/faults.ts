import { h2Error } from "./codes.ts";
import type { FloodKind } from "./limits.ts";

/** Why a stream was refused or reset by the server. */
export type StreamFault =
  | "concurrent_streams"
  | "malformed_request"
  | "stream_protocol_error"
  | "stream_flow_control"
  | "stream_closed"
  | "stream_queue_full"
  | "memory_full"
  | "send_stalled";

/** Why a connection ended. */
export type ConnectionEnd =
  | FloodKind
  | "protocol_error"
  | "frame_size_error"
  | "flow_control_error"
  | "compression_error"
  | "header_block_too_large"
  | "continuation_flood"
  | "preface_invalid"
  | "preface_timeout"
  | "settings_timeout"
  | "header_block_timeout"
  | "keepalive_timeout"
  | "idle"
  | "drained"
  | "client_left"
  | "socket_closed"
  | "write_stalled";

/** What a client did wrong, and whether it costs it the stream or the connection (RFC 9113 §5.4). */
export type Fault =
  | {
      readonly scope: "connection";
      /** Error code of GOAWAY. */
      readonly code: number;
      readonly end: ConnectionEnd;
      /** For the client's log. */
      readonly text: string;
    }
  | {
      readonly scope: "stream";
      readonly streamId: number;
      /** Error code of RST_STREAM. */
      readonly code: number;
      readonly fault: StreamFault;
    };

/** A fault that ends the connection. */
export function connectionFault(code: number, end: ConnectionEnd, text: string): Fault {
  return { scope: "connection", code, end, text };
}

/** A fault that ends one stream. */
export function streamFault(streamId: number, code: number, fault: StreamFault): Fault {
  return { scope: "stream", streamId, code, fault };
}

/** PROTOCOL_ERROR of the connection. */
export function protocolFault(text: string): Fault {
  return connectionFault(h2Error.protocol, "protocol_error", text);
}

/** FRAME_SIZE_ERROR of the connection. */
export function frameSizeFault(text: string): Fault {
  return connectionFault(h2Error.frameSize, "frame_size_error", text);
}

/** FLOW_CONTROL_ERROR of the connection. */
export function flowControlFault(text: string): Fault {
  return connectionFault(h2Error.flowControl, "flow_control_error", text);
}
