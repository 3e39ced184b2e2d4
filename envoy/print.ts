import { Document, isMap, isScalar, isSeq, type Node } from "yaml";
import { accessLogs } from "./access-log.ts";
import { buildBootstrap } from "./bootstrap.ts";
import { typed, extension, type Config } from "./extension.ts";
import { earlyHeaderMutation, poolCluster } from "./headers.ts";
import { extProcFilter, guardFilterConfig } from "./http-filters.ts";
import { localReplyConfig } from "./local-replies.ts";
import { publicPoolRoutes } from "./http-listener.ts";
import type { EnvoyOptions } from "./options.ts";
import { controlCluster, staticClusters } from "./static-clusters.ts";

/** A place in a document and what to say there. */
type Note = readonly [path: readonly (string | number)[], comment: string];

/** Puts comments above keys and list items. A path that does not exist is a bug, found by the tests of this file. */
function annotate(document: Document, notes: readonly Note[]): void {
  for (const [path, comment] of notes) {
    const parent = document.getIn(path.slice(0, -1), true);
    const last = path.at(-1);
    const text = comment
      .split("\n")
      .map((line) => ` ${line}`)
      .join("\n");
    let target: Node | undefined;
    if (isSeq(parent) && typeof last === "number") {
      target = parent.items[last] as Node | undefined;
    } else if (isMap(parent)) {
      const pair = parent.items.find(({ key }) => isScalar(key) && key.value === last);
      target = pair?.key as Node | undefined;
    }
    if (target === undefined) throw new Error(`nothing at ${path.join(".")} to comment on`);
    target.commentBefore = text;
    target.spaceBefore = path.length <= 2;
  }
}

function toYaml(head: string, value: Config, notes: readonly Note[]): string {
  const document = new Document(value, { aliasDuplicateObjects: false });
  annotate(document, notes);
  const comment = head
    .trim()
    .split("\n")
    .map((line) => (line === "" ? "#" : `# ${line}`))
    .join("\n");
  return `${comment}\n\n${document.toString({ lineWidth: 0 })}`;
}

const duplexWarning = `
FULL_DUPLEX_STREAMED cannot fail open: without a router, requests with a body get 503, and a router that ends its stream
early leaves the engine with part of a body. Nothing is tried again on another engine. Use it where a gateway demands it,
the buffered mode elsewhere.`;

/**
 * The whole configuration as YAML with comments: what `kvmesh up` runs, to be used as it is or as an example.
 * Deterministic.
 */
export function printFull(options: EnvoyOptions): string {
  const spans: readonly Note[] = [
    [["layered_runtime"], "Spans are sent every second instead of every five."],
  ];
  const hcm = ["filter_chains", 0, "filters", 0, "typed_config"] as const;
  const listener = ["static_resources", "listeners", 0] as const;
  return toYaml(
    `Envoy in front of a kvmesh. Needs Envoy 1.37 or newer.
Check:  envoy --mode validate -c envoy.yaml
Run:    envoy -c envoy.yaml --disable-hot-restart
${options.bodyMode === "duplex" ? duplexWarning : ""}`,
    buildBootstrap(options),
    [
      [["node"], "Change: a name of its own for every Envoy."],
      [["admin"], "Everything can be read and stopped here: keep it on loopback."],
      [
        ["overload_manager"],
        "Change: limits for the memory and connections that this machine has.",
      ],
      ...(options.otlp === undefined ? [] : spans),
      [["dynamic_resources"], "Pools and their engines come from the routers."],
      [
        [...listener, "address"],
        "Change: 0.0.0.0 or an address of this machine, and TLS in a transport_socket of the filter chain.",
      ],
      [
        [...listener, ...hcm, "early_header_mutation_extensions"],
        "Takes every control header of a client away before anything reads it, and sets the default pool.",
      ],
      [
        [...listener, ...hcm, "local_reply_config"],
        "Envoy's own errors in the OpenAI shape; errors made by a router are left as they are.",
      ],
      [
        [...listener, ...hcm, "access_log"],
        "Tells the routers how each request ended; their books depend on it.",
      ],
      [
        [...listener, ...hcm, "http_filters", 0],
        "Asks a router where the request goes. failure_mode_allow is what happens when none answers.",
      ],
      [
        [...listener, ...hcm, "http_filters", 1],
        "Lets requests that no router placed reach the default pool's own models only.",
      ],
      [
        ["static_resources", "listeners", 1],
        "Trusted callers may set tenant, priority, session and objectives. Loopback or mTLS only.",
      ],
      [
        ["static_resources", "clusters", 0],
        "Change: the hot ports of your routers; a DNS name stands for all its addresses.",
      ],
      [["static_resources", "clusters", 1], "Change: the control ports of the same routers."],
      ...(options.otlp === undefined
        ? []
        : ([[["static_resources", "clusters", 2], "Change: your OTLP receiver (gRPC)."]] as const)),
    ],
  );
}

/** The default pool as a cluster that asks the routers for its endpoints, without aggregated discovery. */
function poolClusterWithOwnDiscovery(options: EnvoyOptions): Config {
  const protocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
  return {
    name: poolCluster(options.defaultPool.id),
    type: "EDS",
    connect_timeout: "0.5s",
    ignore_health_on_host_removal: true,
    eds_cluster_config: {
      eds_config: {
        resource_api_version: "V3",
        initial_fetch_timeout: "15s",
        api_config_source: {
          api_type: "GRPC",
          transport_api_version: "V3",
          set_node_on_first_message_only: true,
          grpc_services: [{ envoy_grpc: { cluster_name: controlCluster } }],
        },
      },
    },
    circuit_breakers: {
      thresholds: [
        {
          max_connections: options.limits.requestsPerClusterMax,
          max_pending_requests: options.limits.requestsPerClusterMax,
          max_requests: options.limits.requestsPerClusterMax,
          retry_budget: { budget_percent: { value: 10 }, min_retry_concurrency: 3 },
        },
      ],
    },
    typed_extension_protocol_options: {
      [protocolOptions]: typed(protocolOptions, {
        common_http_protocol_options: { idle_timeout: "4s" },
        explicit_http_config: { http_protocol_options: {} },
      }),
    },
    load_balancing_policy: {
      policies: [
        {
          typed_extension_config: extension(
            "envoy.load_balancing_policies.override_host",
            "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
            {
              override_host_sources: [
                {
                  metadata: {
                    key: "envoy.lb",
                    path: [{ key: "x-gateway-destination-endpoint" }],
                  },
                },
              ],
              fallback_policy: {
                policies: [
                  {
                    typed_extension_config: extension(
                      "envoy.load_balancing_policies.least_request",
                      "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
                    ),
                  },
                ],
              },
            },
          ),
        },
      ],
    },
  };
}

/**
 * The parts to paste into an Envoy that somebody already runs, with the place of each. No aggregated discovery is
 * needed, so it fits beside another control plane. Deterministic.
 */
export function printFilter(options: EnvoyOptions): string {
  return toYaml(
    `Parts for an Envoy that already runs (1.37 or newer), each with its place. Paste, then change what says so.
${options.bodyMode === "duplex" ? duplexWarning : ""}`,
    {
      http_connection_manager: {
        early_header_mutation_extensions: [earlyHeaderMutation("public", options.defaultPool.id)],
        local_reply_config: localReplyConfig(),
        access_log: accessLogs(options),
        http_filters: [extProcFilter(options), guardFilterConfig()],
      },
      routes: publicPoolRoutes(options),
      clusters: [
        ...staticClusters({ ...options, otlp: undefined }),
        poolClusterWithOwnDiscovery(options),
      ],
    },
    [
      [
        ["http_connection_manager"],
        "Into the typed_config of your HttpConnectionManager, the lists at the front of yours.",
      ],
      [
        ["http_connection_manager", "early_header_mutation_extensions"],
        "Takes every control header of a client away before anything reads it, and sets the default pool.",
      ],
      [
        ["http_connection_manager", "local_reply_config"],
        "Optional: errors of Envoy's own in the OpenAI shape.",
      ],
      [
        ["http_connection_manager", "access_log"],
        "Tells the routers how each request ended; their books depend on it.",
      ],
      [
        ["http_connection_manager", "http_filters"],
        "Both before envoy.filters.http.router, after your authentication and rate limits.",
      ],
      [
        ["routes"],
        "Into your virtual host: the paths that callers may use. Engines have others that administrate them; give those\nto trusted callers only. The metadata belongs to the guard.",
      ],
      [["clusters"], "Beside your clusters."],
      [
        ["clusters", 0],
        "Change: the hot ports of your routers; a DNS name stands for all its addresses.",
      ],
      [["clusters", 1], "Change: the control ports of the same routers."],
      [["clusters", 2], "Change: one such cluster for each pool, named pool-<id>."],
    ],
  );
}
