import { type Config, extension } from "./extension.ts";
import { httpListener } from "./http-listener.ts";
import { findOptionProblems, type EnvoyOptions, type HostPort } from "./options.ts";
import { controlCluster, staticClusters } from "./static-clusters.ts";

const socket = ({ host, port }: HostPort): Config => ({
  socket_address: { address: host, port_value: port },
});

/** What Envoy gives up, and when, before it runs out of memory or connections. */
function overloadManager(options: EnvoyOptions): Config {
  const heap = "envoy.resource_monitors.fixed_heap";
  const at = (name: string, share: number): Config => ({
    name,
    triggers: [{ name: heap, threshold: { value: share } }],
  });
  return {
    refresh_interval: "0.25s",
    resource_monitors: [
      extension(heap, "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig", {
        max_heap_size_bytes: options.limits.heapBytesMax,
      }),
      extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        { max_active_downstream_connections: options.limits.connectionsMax },
      ),
    ],
    actions: [
      at("envoy.overload_actions.shrink_heap", 0.9),
      at("envoy.overload_actions.stop_accepting_requests", 0.95),
    ],
  };
}

/** The aggregated discovery stream. After a failure the next router is tried within a second. */
function dynamicResources(): Config {
  return {
    ads_config: {
      api_type: "GRPC",
      transport_api_version: "V3",
      set_node_on_first_message_only: true,
      grpc_services: [
        {
          envoy_grpc: {
            cluster_name: controlCluster,
            retry_policy: {
              retry_back_off: { base_interval: "0.1s", max_interval: "1s" },
            },
          },
        },
      ],
    },
    cds_config: { resource_api_version: "V3", ads: {}, initial_fetch_timeout: "15s" },
  };
}

/** Spans are sent every second, or when five are there: whoever asks for the trace of a request does so at once. */
const spanFlush: Config = {
  layered_runtime: {
    layers: [
      { name: "static", static_layer: { "tracing.opentelemetry.flush_interval_ms": 1_000 } },
    ],
  },
};

/**
 * The whole configuration of an Envoy in front of a mesh, in the JSON form that `envoy -c` takes.
 *
 * Deterministic. Throws an Error that lists every problem when the options make no working Envoy.
 */
export function buildBootstrap(options: EnvoyOptions): Config {
  const problems = findOptionProblems(options);
  if (problems.length > 0) {
    throw new Error(`the Envoy options cannot work:\n  ${problems.join("\n  ")}`);
  }
  return {
    node: { id: options.nodeId, cluster: "kvmesh" },
    admin: { address: socket(options.admin), ignore_global_conn_limit: true },
    overload_manager: overloadManager(options),
    ...(options.otlp === undefined ? {} : spanFlush),
    dynamic_resources: dynamicResources(),
    static_resources: {
      listeners: [httpListener("public", options), httpListener("trusted", options)],
      clusters: staticClusters(options),
    },
  };
}
