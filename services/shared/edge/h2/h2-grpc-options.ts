import type { TlsOptions } from "node:tls";
import type { H2Connection } from "../../core/h2/connection.ts";
import type { ConnectionEnd, StreamFault } from "../../core/h2/faults.ts";
import type { H2Stream } from "../../core/h2/stream.ts";
import type { GrpcMetadata } from "./grpc-blocks.ts";
import type { CallFault } from "./grpc-call.ts";
import type { GrpcMethod } from "./grpc-stream.ts";
import type { H2GrpcLimitSettings } from "./h2-grpc-limits.ts";

/** Why a call was refused or ended by the server. */
export type CallRefusal =
  CallFault | StreamFault | "unknown_method" | "not_allowed" | "not_grpc" | "headers_too_large";

/** Why a connection ended or was not taken. */
export type ConnectionClose = ConnectionEnd | "too_many_connections" | "tls_failed" | "no_alpn";

/** What happens beside the calls, for logs and metrics; each is also counted. */
export interface H2GrpcHooks {
  /** A call was refused or ended by the server. `path` is empty when it was not read. */
  onRefused?(reason: CallRefusal, path: string, peer: string): void;
  /** A connection ended. */
  onClosed?(reason: ConnectionClose, peer: string): void;
  /** A handler threw: a bug in it. Its call has been ended with INTERNAL. */
  onHandlerError?(error: unknown, path: string): void;
}

/** A request that is no gRPC call, for whoever serves plain HTTP on the same port. */
export interface HttpOnH2 {
  readonly connection: H2Connection;
  /** Its `listener` is to be set before this returns, unless it is answered at once. */
  readonly stream: H2Stream;
  readonly peer: string;
  /** To be called after output was written outside of a read. */
  touched(): void;
}

/** What `createH2GrpcServer` takes. */
export interface H2GrpcOptions extends H2GrpcHooks {
  /** Handlers by `/package.Service/Method`. */
  readonly methods: ReadonlyMap<string, GrpcMethod>;
  readonly limits?: H2GrpcLimitSettings;
  /** Certificate, key and the like; without it the server speaks cleartext HTTP/2 with prior knowledge. */
  readonly tls?: TlsOptions;
  /** Takes requests that are no gRPC calls; without it they are answered 415. */
  onHttp?(request: HttpOnH2): void;
  /** Further trailers of calls that the server itself refuses or ends, such as `grpc-status-details-bin`; none without it. */
  refusalMetadata?(reason: CallRefusal, status: number, text: string): GrpcMetadata;
  /** Who may call what; `peerAddress` is an IP address, or `unix` for a Unix socket. Everybody may without it. */
  allow?(path: string, peerAddress: string): boolean;
}

/** Figures of a server. Reasons that have not occurred are absent. */
export interface H2GrpcCounts {
  readonly connections: number;
  readonly streams: number;
  /** Since the start. */
  readonly connectionsTotal: number;
  readonly callsTotal: number;
  readonly refused: Readonly<Partial<Record<CallRefusal, number>>>;
  readonly closed: Readonly<Partial<Record<ConnectionClose, number>>>;
  /** Messages being received and answers waiting to be sent. */
  readonly bufferedBytes: number;
  /** Message buffers kept for reuse. */
  readonly pooledBytes: number;
}
