import { credentials, type ChannelCredentials, type ChannelOptions } from "@grpc/grpc-js";

/** Options of every channel inside the mesh: keepalive finds a dead peer within 7 s, reconnects within 2 s. */
export function createChannelOptions(messageBytesMax = 64 * 1024 * 1024): ChannelOptions {
  return {
    "grpc.keepalive_time_ms": 5_000,
    "grpc.keepalive_timeout_ms": 2_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.max_receive_message_length": messageBytesMax,
    "grpc.max_send_message_length": messageBytesMax,
    "grpc-node.flow_control_window": 4 * 1024 * 1024,
    "grpc.use_local_subchannel_pool": 1,
  };
}

/** Credentials inside the mesh: none on loopback; certificates replace them where TLS is configured. */
export function createChannelCredentials(): ChannelCredentials {
  return credentials.createInsecure();
}
