import { accessLogs } from "./access-log.ts";
import { duration, extension, typed, type Config } from "./extension.ts";
import {
  earlyHeaderMutation,
  hiddenFromEngines,
  hiddenFromRelays,
  poolHeader,
  relaysCluster,
} from "./headers.ts";
import { guardFilter } from "./filter-names.ts";
import { extProcFilter, guardFilterConfig, guardSettings, routerFilter } from "./http-filters.ts";
import { localReplyConfig } from "./local-replies.ts";
import type { EnvoyOptions } from "./options.ts";
import {
  inferencePaths,
  nothingRoute,
  pathMatch,
  relayServices,
  withoutFilters,
} from "./public-paths.ts";

/** Static cluster of the OTLP receiver. */
export const otlpCluster = "otlp";

/** Tries again on another endpoint: the next one of the router's list, else one that was not tried yet. */
function retryPolicy(retryOn: string, options: EnvoyOptions): Config {
  return {
    retry_on: retryOn,
    retriable_status_codes: [503],
    num_retries: options.retriesMax,
    retry_back_off: { base_interval: "0.010s", max_interval: "0.100s" },
    retry_host_predicate: [
      extension(
        "envoy.retry_host_predicates.previous_hosts",
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
      ),
    ],
    host_selection_retry_max_attempts: 5,
  };
}

/**
 * One route: requests are matched again after the router's answer, by the cluster it named. Only the buffered mode
 * retries: the body that Envoy keeps for another try is sent a second time, behind the first, when ext_proc lets request
 * trailers pass in another mode (envoyproxy/envoy#45470).
 */
function route(
  name: string,
  options: EnvoyOptions,
  parts: { match: Config; retryOn: string; hidden: readonly string[] },
): Config {
  return {
    name,
    match: parts.match,
    metadata: { filter_metadata: { [guardFilter]: guardSettings(options) } },
    request_body_buffer_limit: options.limits.bodyBytesMax,
    request_headers_to_remove: parts.hidden,
    route: {
      cluster_header: poolHeader,
      timeout: "0s", // a stream may be long; streamIdleMs bounds silence
      ...(options.bodyMode === "buffered"
        ? { retry_policy: retryPolicy(parts.retryOn, options) }
        : {}),
    },
  };
}

/** The route to whatever pool the router named, or to the default pool; `path` is the condition on the path. */
function poolRoute(options: EnvoyOptions, path: Config): Config {
  return route("pools", options, {
    match: path,
    retryOn: "connect-failure,refused-stream,reset-before-request,retriable-status-codes",
    hidden: hiddenFromEngines,
  });
}

function relayRoute(options: EnvoyOptions, path: Config): Config {
  return route("relays", options, {
    match: {
      ...path,
      headers: [{ name: poolHeader, string_match: { exact: relaysCluster } }],
    },
    // A relay retries by itself once a request has reached it.
    retryOn: "connect-failure,refused-stream",
    hidden: hiddenFromRelays,
  });
}

/**
 * A gRPC service of the relays: whichever relay has least to do takes the call, and asks a router itself. The caller's
 * deadline goes on to the relay, which ends the call by name; Envoy would cut it off a moment earlier, for which gRPC's word
 * is INTERNAL. A call that reached a relay is the relay's and the caller's to try again.
 */
function relayServiceRoute(options: EnvoyOptions, path: string): Config {
  return {
    name: "relay-services",
    match: { ...pathMatch(path), grpc: {} },
    typed_per_filter_config: withoutFilters(),
    request_headers_to_remove: hiddenFromRelays,
    route: {
      cluster: relaysCluster,
      timeout: "0s", // an answer may be long; the relay keeps the caller's deadline, and streamIdleMs bounds it
      retry_policy: retryPolicy("connect-failure,refused-stream", options),
    },
  };
}

/** Conditions of the paths that public callers may send to. */
function publicPaths(options: EnvoyOptions): Config[] {
  return [...new Set([...inferencePaths, ...options.publicPaths])]
    .filter((path) => !relayServices.includes(path))
    .map(pathMatch);
}

/** Routes to the pools for public callers: the inference paths, and those that the options add. */
export function publicPoolRoutes(options: EnvoyOptions): Config[] {
  return publicPaths(options).map((path) => poolRoute(options, path));
}

function routes(listener: "public" | "trusted", options: EnvoyOptions): Config[] {
  if (listener === "trusted") {
    const all = { prefix: "/" };
    return [
      ...relayServices.map((path) => relayServiceRoute(options, path)),
      relayRoute(options, all),
      poolRoute(options, all),
    ];
  }
  return [
    ...relayServices
      .filter((path) => options.publicPaths.includes(path))
      .map((path) => relayServiceRoute(options, path)),
    ...publicPaths(options).map((path) => relayRoute(options, path)),
    ...publicPoolRoutes(options),
    nothingRoute(),
  ];
}

function routeConfig(listener: "public" | "trusted", options: EnvoyOptions): Config {
  return {
    name: listener,
    // The relays' cluster comes from discovery.
    validate_clusters: false,
    virtual_hosts: [
      {
        name: "all",
        domains: ["*"],
        response_headers_to_add: [
          {
            // Why a stream that was to be guarded is not; relays say it themselves.
            header: { key: "x-kvmesh-guard", value: "%DYNAMIC_METADATA(kvmesh:guard)%" },
            append_action: "ADD_IF_ABSENT",
          },
          ...(listener === "trusted"
            ? [
                {
                  header: {
                    key: "x-kvmesh-decision",
                    value: "%DYNAMIC_METADATA(kvmesh:decision)%",
                  },
                  append_action: "OVERWRITE_IF_EXISTS_OR_ADD",
                },
                {
                  header: {
                    key: "x-gateway-destination-endpoint-served",
                    value: "%UPSTREAM_HOST%",
                  },
                  append_action: "OVERWRITE_IF_EXISTS_OR_ADD",
                },
              ]
            : []),
        ],
        routes: routes(listener, options),
      },
    ],
  };
}

function tracing(options: EnvoyOptions): Config {
  if (options.otlp === undefined) return {};
  return {
    tracing: {
      spawn_upstream_span: true,
      random_sampling: { value: 100 },
      provider: extension(
        "envoy.tracers.opentelemetry",
        "envoy.config.trace.v3.OpenTelemetryConfig",
        {
          service_name: "envoy",
          grpc_service: { envoy_grpc: { cluster_name: otlpCluster }, timeout: "1s" },
        },
      ),
    },
  };
}

function connectionManager(listener: "public" | "trusted", options: EnvoyOptions): Config {
  const { limits, timeouts } = options;
  return {
    stat_prefix: listener,
    codec_type: "AUTO", // HTTP/1.1 and cleartext HTTP/2 on one port
    use_remote_address: true,
    normalize_path: true,
    merge_slashes: true,
    path_with_escaped_slashes_action: "REJECT_REQUEST",
    generate_request_id: true,
    preserve_external_request_id: true,
    always_set_request_id_in_response: true,
    request_id_extension: {
      typed_config: typed("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", {
        use_request_id_for_trace_sampling: false, // else an id that is not a UUID turns tracing off
        pack_trace_reason: false, // else one digit of a caller's id is overwritten, and nobody finds it under its name
      }),
    },
    common_http_protocol_options: {
      idle_timeout: duration(timeouts.connectionIdleMs),
      max_headers_count: limits.headersMax,
      headers_with_underscores_action: "DROP_HEADER",
    },
    http2_protocol_options: {
      max_concurrent_streams: limits.streamsPerConnectionMax,
      initial_stream_window_size: 65_536,
      initial_connection_window_size: 1_048_576,
    },
    max_request_headers_kb: limits.headerKibMax,
    request_headers_timeout: duration(timeouts.requestHeadersMs),
    request_timeout: duration(timeouts.requestMs),
    stream_idle_timeout: duration(timeouts.streamIdleMs),
    early_header_mutation_extensions: [earlyHeaderMutation(listener, options.defaultPool.id)],
    local_reply_config: localReplyConfig(),
    access_log: accessLogs(options),
    ...tracing(options),
    route_config: routeConfig(listener, options),
    http_filters: [extProcFilter(options), guardFilterConfig(), routerFilter()],
  };
}

/** A listener with everything a request passes through before it leaves for an engine. */
export function httpListener(listener: "public" | "trusted", options: EnvoyOptions): Config {
  const { host, port } = options[listener];
  return {
    name: listener,
    address: { socket_address: { address: host, port_value: port } },
    per_connection_buffer_limit_bytes: 65_536,
    filter_chains: [
      {
        filters: [
          extension(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            connectionManager(listener, options),
          ),
        ],
      },
    ],
  };
}
