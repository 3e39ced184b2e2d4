import { extension, type Config } from "./extension.ts";
import { routerCluster } from "./http-filters.ts";
import type { EnvoyOptions } from "./options.ts";

/** Name of the log in its stream's identifier. */
export const accessLogName = "kvmesh";

/**
 * The log that closes the routers' books: one record per request, 20 ms after its end at the latest. `ttft_us` is the
 * time from the first byte of the request to the first byte of the response's body; the headers of a stream come long
 * before its first token.
 */
function grpcAccessLog(): Config {
  return extension(
    "envoy.access_loggers.http_grpc",
    "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    {
      additional_request_headers_to_log: ["x-request-id"],
      common_config: {
        log_name: accessLogName,
        transport_api_version: "V3",
        buffer_flush_interval: "0.02s",
        buffer_size_bytes: 16_384,
        custom_tags: [{ tag: "ttft_us", value: "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%" }],
        filter_state_objects_to_log: ["envoy.filters.http.ext_proc"],
        grpc_service: { envoy_grpc: { cluster_name: routerCluster } },
      },
    },
  );
}

/** The same facts for people, one JSON line per request. Holds no header or body of a client but its request id. */
function fileAccessLog(path: string): Config {
  return extension(
    "envoy.access_loggers.file",
    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    {
      path,
      log_format: {
        json_format: {
          time: "%START_TIME%",
          id: "%REQ(X-REQUEST-ID)%",
          method: "%REQ(:METHOD)%",
          path: "%PATH(NQ)%",
          code: "%RESPONSE_CODE%",
          details: "%RESPONSE_CODE_DETAILS%",
          flags: "%RESPONSE_FLAGS%",
          decision: "%DYNAMIC_METADATA(kvmesh:decision)%",
          picked: "%DYNAMIC_METADATA(envoy.lb:x-gateway-destination-endpoint)%",
          served: "%UPSTREAM_HOST%",
          cluster: "%UPSTREAM_CLUSTER%",
          attempts: "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
          ttft_us: "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
          total_ms: "%DURATION%",
          router: "%FILTER_STATE(envoy.filters.http.ext_proc:PLAIN)%",
        },
      },
    },
  );
}

/** Every access log of a listener. */
export function accessLogs(options: EnvoyOptions): Config[] {
  const path = options.accessLogPath;
  return path === undefined ? [grpcAccessLog()] : [grpcAccessLog(), fileAccessLog(path)];
}
