import { status, type ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import type { AggregatedDiscoveryServiceServer } from "../../shared/gen/envoy/service/discovery/v3/ads.ts";
import type { EndpointDiscoveryServiceServer } from "../../shared/gen/envoy/service/endpoint/v3/eds.ts";
import type {
  DiscoveryRequest,
  DiscoveryResponse,
} from "../../shared/gen/envoy/service/discovery/v3/discovery.ts";
import type { Any } from "../../shared/gen/google/protobuf/any.ts";
import type { Discovery, Knowledge } from "../core/discovery/discovery.ts";
import {
  DiscoveryStream,
  resourceTypes,
  type RequestOutcome,
  type ResourceType,
  type StreamResponse,
} from "../core/discovery/discovery-stream.ts";
import type { DiscoveryMember } from "../core/discovery/discovery-view.ts";
import { clusterResource, endpointsResource } from "./ads-resources.ts";

type Call = ServerDuplexStream<DiscoveryRequest, DiscoveryResponse>;

/** Where the numbers go; each is called on the event loop and must return at once. */
export interface AdsMetrics {
  /** Streams open now. */
  streams(count: number): void;
  /** One request came. */
  request(outcome: RequestOutcome): void;
  /** One answer went out. */
  pushed(type: ResourceType): void;
  /** Endpoints that are told although no router has them (grace period). */
  held(count: number): void;
}

/** Discovery streams at most; further ones are refused with RESOURCE_EXHAUSTED. */
const streamsMax = 1_024;

/** What `createAdsService` needs. */
export interface AdsDependencies {
  readonly discovery: Discovery;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: AdsMetrics;
  /** Instance id of this router, sent with every answer. */
  readonly identifier: string;
}

/** The discovery service of one router. */
export interface AdsService {
  /** To be registered on the control port. */
  readonly service: AggregatedDiscoveryServiceServer;
  /** Also there: endpoints alone, for an Envoy whose aggregated discovery comes from somebody else. */
  readonly endpointService: EndpointDiscoveryServiceServer;
  /** Replaces the union view of the members and tells every Envoy what changed. */
  setMembers(members: readonly DiscoveryMember[]): void;
  /** Replaces the relays, `ip:port` each. */
  setRelays(relays: readonly string[]): void;
  /** `partial`: some peers were not heard in time; `complete`: all were. Before that nothing is answered. */
  setKnowledge(knowledge: Knowledge): void;
  /** Version of a type that each connected Envoy took last, by node id. */
  takenVersions(type: ResourceType): ReadonlyMap<string, string>;
  /** Ends every stream; Envoys go on with what they have and ask another router. */
  close(): void;
}

/** One connected Envoy. */
interface Client {
  readonly call: Call;
  readonly stream: DiscoveryStream;
  nodeId: string;
}

/**
 * Serves clusters and endpoints over one aggregated stream per Envoy, state of the world. What to say and when is
 * decided by `Discovery` and `DiscoveryStream`; this carries it. A stream holds at most one unacknowledged answer per
 * type, so nothing queues up behind a slow Envoy.
 */
export function createAdsService(dependencies: AdsDependencies): AdsService {
  const { discovery, clock, log, metrics, identifier } = dependencies;
  const clients = new Set<Client>();
  const clusters = new Map<string, Any>();
  const resourceOf = (type: ResourceType, name: string): Any | undefined => {
    if (type === "endpoints") {
      const set = discovery.snapshot.endpoints.get(name);
      return set === undefined ? undefined : endpointsResource(set);
    }
    let resource = clusters.get(name);
    if (resource === undefined) {
      resource = clusterResource(name);
      clusters.set(name, resource); // bounded by the number of pools
    }
    return resource;
  };
  const encode = ({ type, version, nonce, names }: StreamResponse): DiscoveryResponse => ({
    versionInfo: version,
    resources: names.map((name) => resourceOf(type, name)).filter((found) => found !== undefined),
    typeUrl: resourceTypes[type],
    nonce,
    controlPlane: { identifier },
  });
  const send = (client: Client): void => {
    if (!discovery.mayAnswer(client.stream.hasForeignState, clock.now())) return;
    for (const response of client.stream.nextResponses(discovery.snapshot)) {
      client.call.write(encode(response));
      metrics.pushed(response.type);
    }
  };
  const sendAll = (): void => {
    metrics.held(discovery.heldCount);
    for (const client of clients) send(client);
  };
  // Whatever waited for the end of the grace period goes out then.
  const graceTimer = setTimeout(
    () => {
      discovery.tick(clock.now());
      sendAll();
    },
    Math.max(0, discovery.graceEndsAt - clock.now() + 1),
  );
  graceTimer.unref();

  const receive = (client: Client, request: DiscoveryRequest): void => {
    if (request.node !== undefined) client.nodeId = request.node.id;
    const outcome = client.stream.receive({
      typeUrl: request.typeUrl,
      version: request.versionInfo,
      resourceNames: request.resourceNames,
      nonce: request.responseNonce,
      error: request.errorDetail?.message,
    });
    metrics.request(outcome);
    const facts = { nodeId: client.nodeId, typeUrl: request.typeUrl };
    switch (outcome) {
      case "nacked":
        log.error(
          { event: "discovery_refused", ...facts, reason: request.errorDetail?.message },
          "Envoy refused a discovery answer and keeps the last good one",
        );
        break;
      case "unknown_type":
        log.warn(
          { event: "discovery_type_unknown", ...facts },
          "Envoy asks for what we do not serve",
        );
        break;
      case "too_many_names":
        client.call.emit("error", {
          code: status.INVALID_ARGUMENT,
          details: `too many resource names: ${request.resourceNames.length.toString()}`,
        });
        return;
      case "subscribed":
      case "acked":
      case "stale":
        break;
    }
    send(client);
  };

  const open = (call: Call): void => {
    if (clients.size >= streamsMax) {
      call.emit("error", {
        code: status.RESOURCE_EXHAUSTED,
        details: `${streamsMax.toString()} discovery streams are open`,
      });
      return;
    }
    const client: Client = { call, stream: new DiscoveryStream(discovery.epoch), nodeId: "" };
    clients.add(client);
    metrics.streams(clients.size);
    const leave = (reason: string): void => {
      if (!clients.delete(client)) return;
      metrics.streams(clients.size);
      log.info(
        { event: "discovery_ended", nodeId: client.nodeId, reason },
        "an Envoy left discovery",
      );
    };
    call.on("data", (request: DiscoveryRequest) => receive(client, request));
    call.on("end", () => {
      leave("end");
      call.end();
    });
    call.on("cancelled", () => leave("cancelled"));
    call.on("error", (error: Error) => leave(error.message));
  };

  return {
    service: { streamAggregatedResources: open },
    endpointService: { streamEndpoints: open },
    setMembers(members) {
      if (discovery.setMembers(members, clock.now())) sendAll();
    },
    setRelays(relays) {
      if (discovery.setRelays(relays, clock.now())) sendAll();
    },
    setKnowledge(knowledge) {
      if (discovery.setKnowledge(knowledge)) sendAll();
    },
    takenVersions: (type) =>
      new Map([...clients].map(({ nodeId, stream }) => [nodeId, stream.takenVersion(type)])),
    close() {
      clearTimeout(graceTimer);
      for (const { call } of clients) call.end();
      clients.clear();
      metrics.streams(0);
    },
  };
}
