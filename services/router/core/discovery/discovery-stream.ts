import type { DiscoverySnapshot } from "./discovery-view.ts";

/** Kinds of resources that are served, as type URLs. */
export const resourceTypes = {
  clusters: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
  endpoints: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
} as const;
/** One of `resourceTypes`. */
export type ResourceType = keyof typeof resourceTypes;

/** Resource names in one request at most. */
export const resourceNamesMax = 4_096;

/** What Envoy asked, reduced to what matters. */
export interface StreamRequest {
  readonly typeUrl: string;
  /** Version that Envoy has; empty when none. */
  readonly version: string;
  readonly resourceNames: readonly string[];
  /** Nonce of the answer that this request is about; empty in the first one of a type. */
  readonly nonce: string;
  /** Why Envoy refused that answer; `undefined` when it took it. */
  readonly error: string | undefined;
}

/** An answer to send: the named resources of the snapshot. */
export interface StreamResponse {
  readonly type: ResourceType;
  readonly version: string;
  readonly nonce: string;
  readonly names: readonly string[];
}

/** What became of a request, for logs and metrics. */
export type RequestOutcome =
  "subscribed" | "acked" | "nacked" | "stale" | "unknown_type" | "too_many_names";

interface Subscription {
  /** Wanted names; `undefined` means all. */
  names: ReadonlySet<string> | undefined;
  /** Version that Envoy had when it first asked, then the last one that it took. */
  takenVersion: string;
  sentVersion: string;
  nonce: string;
  /** An answer is on its way and not acknowledged; the next waits for that. */
  isPending: boolean;
  /** Something to send even if the version is the same. */
  isDue: boolean;
}

/**
 * The state of one discovery stream: what Envoy subscribed to, took and refused. Deterministic.
 *
 * At most one answer of a type is under way, so a slow Envoy costs nothing and gets the newest state when it is ready.
 * A refused version is not sent again; the next change is.
 */
export class DiscoveryStream {
  readonly #epoch: string;
  readonly #subscriptions = new Map<ResourceType, Subscription>();
  #answers = 0;
  #hasForeignState = false;

  /** `epoch`: of this router, first part of its versions. */
  constructor(epoch: string) {
    this.#epoch = epoch;
  }

  /** Whether Envoy came with resources from another router, or from an earlier life of this one. */
  get hasForeignState(): boolean {
    return this.#hasForeignState;
  }

  /** The version of a type that Envoy took last, empty when none. */
  takenVersion(type: ResourceType): string {
    return this.#subscriptions.get(type)?.takenVersion ?? "";
  }

  /** Takes in a request. Call `nextResponses` afterwards. */
  receive(request: StreamRequest): RequestOutcome {
    const type = typeOf(request.typeUrl);
    if (type === undefined) return "unknown_type";
    if (request.resourceNames.length > resourceNamesMax) return "too_many_names";
    const names = request.resourceNames.length === 0 ? undefined : new Set(request.resourceNames);
    const known = this.#subscriptions.get(type);
    if (known === undefined) {
      if (request.version !== "" && !request.version.startsWith(`${this.#epoch}.`)) {
        this.#hasForeignState = true;
      }
      this.#subscriptions.set(type, {
        names,
        takenVersion: request.version,
        sentVersion: "",
        nonce: "",
        isPending: false,
        isDue: true,
      });
      return "subscribed";
    }
    // About an answer that was followed by another one: that one's acknowledgement says all.
    if (request.nonce !== known.nonce) return "stale";
    const wasPending = known.isPending;
    known.isPending = false;
    if (addsNames(known.names, names)) known.isDue = true;
    known.names = names;
    if (request.error !== undefined) return "nacked";
    known.takenVersion = request.version;
    if (!wasPending) return "subscribed";
    // Envoy warms a changed cluster until its endpoints come again; nothing in its requests tells that it waits.
    const endpoints = this.#subscriptions.get("endpoints");
    if (type === "clusters" && endpoints !== undefined) endpoints.isDue = true;
    return "acked";
  }

  /** What to send now, clusters before endpoints. Each answer counts as sent. */
  nextResponses(snapshot: DiscoverySnapshot): StreamResponse[] {
    const responses: StreamResponse[] = [];
    for (const type of ["clusters", "endpoints"] as const) {
      const subscription = this.#subscriptions.get(type);
      if (subscription === undefined || subscription.isPending) continue;
      const version = type === "clusters" ? snapshot.clustersVersion : snapshot.endpointsVersion;
      if (!subscription.isDue && subscription.sentVersion === version) continue;
      const available = type === "clusters" ? snapshot.clusters : [...snapshot.endpoints.keys()];
      const { names } = subscription;
      const sent = names === undefined ? available : available.filter((name) => names.has(name));
      // Envoy would take an empty answer about endpoints for one it can act on, and waits no longer.
      if (type === "endpoints" && sent.length === 0) continue;
      this.#answers += 1;
      subscription.nonce = this.#answers.toString();
      subscription.sentVersion = version;
      subscription.isPending = true;
      subscription.isDue = false;
      responses.push({ type, version, nonce: subscription.nonce, names: sent });
    }
    return responses;
  }
}

function typeOf(url: string): ResourceType | undefined {
  if (url === resourceTypes.clusters) return "clusters";
  if (url === resourceTypes.endpoints) return "endpoints";
  return undefined;
}

/** Whether `after` asks for something that `before` did not. */
function addsNames(
  before: ReadonlySet<string> | undefined,
  after: ReadonlySet<string> | undefined,
): boolean {
  if (before === undefined) return false;
  return after === undefined || [...after].some((name) => !before.has(name));
}
