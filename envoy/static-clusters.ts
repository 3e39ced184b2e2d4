import { isIP } from "node:net";
import { typed, type Config } from "./extension.ts";
import { routerCluster } from "./http-filters.ts";
import { otlpCluster } from "./http-listener.ts";
import type { EnvoyOptions, HostPort } from "./options.ts";

/** Static cluster of the routers' control ports, which serve discovery. */
export const controlCluster = "control";

const protocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

function endpoints(clusterName: string, addresses: readonly HostPort[]): Config {
  return {
    // A name stands for every address that it has, such as the pods behind a headless service.
    type: addresses.every(({ host }) => isIP(host) !== 0) ? "STATIC" : "STRICT_DNS",
    load_assignment: {
      cluster_name: clusterName,
      endpoints: [
        {
          lb_endpoints: addresses.map(({ host, port }) => ({
            endpoint: { address: { socket_address: { address: host, port_value: port } } },
          })),
        },
      ],
    },
  };
}

/** HTTP/2 with pings, so that a frozen peer is noticed within interval and timeout. */
function http2(pings: { intervalSeconds: number; timeoutSeconds: number }, rest: Config): Config {
  return {
    typed_extension_protocol_options: {
      [protocolOptions]: typed(protocolOptions, {
        explicit_http_config: {
          http2_protocol_options: {
            connection_keepalive: {
              interval: `${pings.intervalSeconds.toString()}s`,
              timeout: `${pings.timeoutSeconds.toString()}s`,
            },
            ...rest,
          },
        },
      }),
    },
  };
}

/**
 * Asks the process's own health service; an open port says nothing about a router that is still learning or draining.
 * `no_traffic_interval` counts until the first request and is a minute by default.
 */
const grpcHealthChecks: readonly Config[] = [
  {
    timeout: "0.5s",
    interval: "1s",
    no_traffic_interval: "1s",
    unhealthy_interval: "0.5s",
    unhealthy_threshold: 2,
    healthy_threshold: 1,
    grpc_health_check: {},
  },
];

function raisedLimits(options: EnvoyOptions): Config {
  const max = options.limits.requestsPerClusterMax;
  return {
    thresholds: [{ max_connections: max, max_pending_requests: max, max_requests: max }],
  };
}

/**
 * Hosts that are known to be down are used only when none is left, and from the moment on at which they are known. By
 * default Envoy goes back to all of them, the dead ones too, as soon as fewer than half are healthy: with two of three
 * routers gone every other request would fail. And it tells its worker threads of a host that went down or up within a
 * second of another only when that second is over: as long they would go on asking a router that is known to be dead.
 */
const onlyHealthyHosts: Config = {
  common_lb_config: { healthy_panic_threshold: { value: 1 }, update_merge_window: "0s" },
};

/**
 * The routers' hot ports: which process decides is chosen per request, and a failing one is left out after its first failure,
 * however many others are left out already: with all of them out, all are used.
 */
function routers(options: EnvoyOptions): Config {
  return {
    name: routerCluster,
    connect_timeout: "0.25s",
    lb_policy: options.routerChoice === "least_request" ? "LEAST_REQUEST" : "ROUND_ROBIN",
    ...onlyHealthyHosts,
    circuit_breakers: raisedLimits(options),
    health_checks: grpcHealthChecks,
    outlier_detection: {
      split_external_local_origin_errors: true,
      consecutive_local_origin_failure: 1,
      consecutive_gateway_failure: 1,
      enforcing_consecutive_gateway_failure: 100,
      interval: "1s",
      base_ejection_time: "5s",
      max_ejection_percent: 100,
    },
    ...http2(
      { intervalSeconds: 2, timeoutSeconds: 1 },
      { initial_stream_window_size: 16_777_216, initial_connection_window_size: 67_108_864 },
    ),
    ...endpoints(routerCluster, options.routers),
  };
}

/**
 * The routers' control ports. Envoy holds one discovery stream at a time, so what counts is how soon it leaves a bad
 * process: pings find a frozen one within 3 s, the health check closes the connection to one that stops serving.
 */
function control(options: EnvoyOptions): Config {
  return {
    name: controlCluster,
    connect_timeout: "0.25s",
    lb_policy: "ROUND_ROBIN",
    ...onlyHealthyHosts,
    health_checks: grpcHealthChecks,
    close_connections_on_host_health_failure: true,
    outlier_detection: {
      split_external_local_origin_errors: true,
      consecutive_local_origin_failure: 1,
      interval: "1s",
      base_ejection_time: "2s",
      max_ejection_percent: 50,
    },
    ...http2({ intervalSeconds: 2, timeoutSeconds: 1 }, {}),
    ...endpoints(controlCluster, options.controls),
  };
}

function otlp(address: HostPort): Config {
  return {
    name: otlpCluster,
    connect_timeout: "1s",
    ...http2({ intervalSeconds: 5, timeoutSeconds: 2 }, {}),
    ...endpoints(otlpCluster, [address]),
  };
}

/** Clusters that stand in the bootstrap; pools and relays come from discovery. */
export function staticClusters(options: EnvoyOptions): Config[] {
  const clusters = [routers(options), control(options)];
  return options.otlp === undefined ? clusters : [...clusters, otlp(options.otlp)];
}
