import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { invariant } from "../../shared/core/invariant.ts";
import { Cluster } from "../../shared/gen/envoy/config/cluster/v3/cluster.ts";
import { ClusterLoadAssignment } from "../../shared/gen/envoy/config/endpoint/v3/endpoint.ts";
import type { LbEndpoint } from "../../shared/gen/envoy/config/endpoint/v3/endpoint_components.ts";
import { LeastRequest } from "../../shared/gen/envoy/extensions/load_balancing_policies/least_request/v3/least_request.ts";
import { OverrideHost } from "../../shared/gen/envoy/extensions/load_balancing_policies/override_host/v3/override_host.ts";
import { HttpProtocolOptions } from "../../shared/gen/envoy/extensions/upstreams/http/v3/http_protocol_options.ts";
import type { Any } from "../../shared/gen/google/protobuf/any.ts";
import type { Duration } from "../../shared/gen/google/protobuf/duration.ts";
import {
  relaysCluster,
  type DiscoveryEndpoint,
  type EndpointSet,
} from "../core/discovery/discovery-view.ts";
import { resourceTypes } from "../core/discovery/discovery-stream.ts";

/** Metadata under which the router names the endpoints of a request. */
const destination = { namespace: "envoy.lb", key: "x-gateway-destination-endpoint" };

const protocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/** Requests in progress per pool; far above what engines take, so that only the router's admission limits. */
const requestsMax = 100_000;

const milliseconds = (ms: number): Duration => ({
  seconds: BigInt(Math.trunc(ms / 1_000)),
  nanos: (ms % 1_000) * 1_000_000,
});

const any = (type: string, value: Uint8Array): Any => ({
  typeUrl: `type.googleapis.com/${type}`,
  value: Buffer.from(value),
});

/** Sends requests where the router said, and the rest to the engine with the fewest. */
function overrideHost(): Cluster["loadBalancingPolicy"] {
  const leastRequest = any(
    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    LeastRequest.encode({ choiceCount: undefined, selectionMethod: 0 }).finish(),
  );
  const policy = (name: string, typedConfig: Any) => ({
    policies: [{ typedExtensionConfig: { name, typedConfig } }],
  });
  const value = OverrideHost.encode({
    overrideHostSources: [
      {
        header: "", // never a header: a client could set it
        metadata: {
          key: destination.namespace,
          path: [{ segment: { $case: "key", value: destination.key } }],
        },
      },
    ],
    fallbackPolicy: policy("envoy.load_balancing_policies.least_request", leastRequest),
  }).finish();
  return policy(
    "envoy.load_balancing_policies.override_host",
    any("envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost", value),
  );
}

/**
 * How Envoy speaks to a cluster. Engines: HTTP/1.1 with connections closed before the engine's own keep-alive ends
 * (uvicorn and Node: 5 s), since Envoy could otherwise write to a connection that is just being closed. Relays: HTTP/2.
 */
function httpOptions(isRelays: boolean): Any {
  const value = HttpProtocolOptions.encode({
    commonHttpProtocolOptions: {
      idleTimeout: milliseconds(isRelays ? 60_000 : 4_000),
      maxConnectionDuration: undefined,
    },
    upstreamProtocolOptions: {
      $case: "explicitHttpConfig",
      value: {
        protocolConfig: isRelays
          ? {
              $case: "http2ProtocolOptions",
              value: {
                maxConcurrentStreams: undefined,
                initialStreamWindowSize: undefined,
                initialConnectionWindowSize: undefined,
                connectionKeepalive: {
                  interval: milliseconds(2_000),
                  timeout: milliseconds(1_000),
                },
              },
            }
          : { $case: "httpProtocolOptions", value: {} },
      },
    },
  }).finish();
  return any(protocolOptions, value);
}

/** The cluster resource of a pool, or of the relays, as Envoy takes it. */
export function clusterResource(name: string): Any {
  const cluster: Cluster = {
    name,
    clusterDiscoveryType: { $case: "type", value: 3 },
    edsClusterConfig: {
      edsConfig: {
        configSourceSpecifier: { $case: "ads", value: {} },
        initialFetchTimeout: milliseconds(15_000),
        resourceApiVersion: 2,
      },
      serviceName: "",
    },
    connectTimeout: milliseconds(500),
    circuitBreakers: {
      thresholds: [
        {
          priority: 0,
          maxConnections: requestsMax,
          maxPendingRequests: requestsMax,
          maxRequests: requestsMax,
          maxRetries: undefined,
          trackRemaining: false,
          // Retries stay a tenth of the traffic, so that a broken pool is not hit harder than a healthy one.
          retryBudget: { budgetPercent: { value: 10 }, minRetryConcurrency: 3 },
        },
      ],
    },
    upstreamConnectionOptions: {
      tcpKeepalive: { keepaliveProbes: 3, keepaliveTime: 30, keepaliveInterval: 10 },
    },
    ignoreHealthOnHostRemoval: true,
    typedExtensionProtocolOptions: { [protocolOptions]: httpOptions(name === relaysCluster) },
    loadBalancingPolicy: overrideHost(),
  };
  return { typeUrl: resourceTypes.clusters, value: Buffer.from(Cluster.encode(cluster).finish()) };
}

function lbEndpoint(endpoint: DiscoveryEndpoint): LbEndpoint {
  const parsed = parseEndpoint(endpoint.address);
  invariant(parsed !== undefined, `${endpoint.address} is not ip:port`);
  return {
    hostIdentifier: {
      $case: "endpoint",
      value: {
        address: {
          address: {
            $case: "socketAddress",
            value: {
              protocol: 0,
              address: parsed.host,
              portSpecifier: { $case: "portValue", value: parsed.port },
            },
          },
        },
        hostname: "",
      },
    },
    healthStatus: endpoint.isDraining ? 3 : 1,
    metadata: {
      filterMetadata: { kvmesh: { workers: [...endpoint.workerIds] } },
      typedFilterMetadata: {},
    },
    loadBalancingWeight: undefined,
  };
}

/** The endpoints of a cluster, as Envoy takes them. Addresses were checked when the member joined. */
export function endpointsResource(set: EndpointSet): Any {
  const value = ClusterLoadAssignment.encode({
    clusterName: set.cluster,
    endpoints: [
      {
        locality: undefined,
        lbEndpoints: set.endpoints.map(lbEndpoint),
        loadBalancingWeight: undefined,
        priority: 0,
      },
    ],
  }).finish();
  return { typeUrl: resourceTypes.endpoints, value: Buffer.from(value) };
}
