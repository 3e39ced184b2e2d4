import type { Clock } from "../../shared/core/clock.ts";
import type { WorkerId } from "../../shared/core/ids.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import { attributes, spanNames } from "../../shared/core/trace-catalogue.ts";
import { parseTraceparent, type Tracing } from "../../shared/edge/tracing.ts";
import { relaysCluster } from "../core/discovery/discovery-view.ts";
import type { Observation } from "../core/decisions/decision.ts";
import type { ServedRecord } from "../core/load/request-ends.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { routerMetrics } from "../metrics.ts";
import type { AccessRecord } from "./access-log/access-record.ts";
import type { PeerLinks } from "./peer-links.ts";
import { recordToWire, timesToWire, type TracedRecord } from "./peer-wire.ts";

/** What handling access-log records needs. */
export interface AccessOutcomesDependencies {
  readonly core: RouterCore;
  readonly clock: Clock;
  readonly tracing: Tracing;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly peers: PeerLinks;
  /** `<instance>.<epoch>` of this router. */
  readonly decisionPrefix: string;
  readonly settle: () => void;
}

const statusClasses = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];

/** Value of `error.type` of a served request, or `undefined` when it went well. */
function errorTypeOf(record: ServedRecord): string | undefined {
  const flags = record.responseFlags.split(",");
  if (flags.includes("DC") || flags.includes("DR")) return "client_cancel";
  if (flags.includes("SI") || flags.includes("UT")) return "deadline_exceeded";
  if (flags.includes("UH")) return "no_endpoint";
  if (flags.some((f) => f === "UF" || f === "UC" || f === "UR" || f === "UPE"))
    return "upstream_reset";
  return record.status >= 500 ? "upstream_status" : undefined;
}

function isTraced(record: { readonly traceparent: string }): boolean {
  return record.traceparent !== "" && parseTraceparent(record.traceparent)?.sampled === true;
}

/**
 * What Envoy's access log says of finished requests: closes the books, writes the serve span, counts. A record may
 * reach another router than the one that decided; that one gets it over the peer link, and writes the span, since it
 * alone knows what was predicted and what its index saw. When it is gone, the router at hand writes what it knows.
 */
export class AccessOutcomes {
  readonly #d: AccessOutcomesDependencies;
  /** Members by endpoint, as found last. */
  readonly #members = new Map<string, WorkerId>();

  constructor(dependencies: AccessOutcomesDependencies) {
    this.#d = dependencies;
  }

  /** Takes a record from Envoy. */
  record(record: AccessRecord): void {
    const { metrics, core, clock, decisionPrefix, peers } = this.#d;
    this.#count(record);
    if (record.decisionId === "") {
      metrics.accessLogRecords.inc({ outcome: "without_decision" });
      return;
    }
    const prefix = record.decisionId.slice(0, record.decisionId.lastIndexOf("."));
    if (prefix === decisionPrefix) {
      metrics.accessLogRecords.inc({ outcome: "own" });
      this.#served(record.decisionId, record, record);
    } else {
      const owner = prefix.slice(0, prefix.lastIndexOf("."));
      core.peerClosed(record.decisionId, clock.now());
      const sent = peers.sendTo(owner, {
        $case: "observed",
        value: {
          decisionId: record.decisionId,
          workerId: record.workerId,
          observed: recordToWire(record),
          times: isTraced(record) ? timesToWire(record) : undefined,
        },
      });
      metrics.accessLogRecords.inc({ outcome: sent ? "forwarded" : "unknown_owner" });
      if (!sent) this.#serveSpan(record, undefined);
    }
    this.#d.settle();
  }

  /** Takes a record that a peer received for a decision of this router; `traced` when the request is traced. */
  observed(decisionId: string, record: ServedRecord, traced: TracedRecord | undefined): void {
    this.#served(decisionId, record, traced);
    this.#d.settle();
  }

  #served(decisionId: string, record: ServedRecord, traced: TracedRecord | undefined): void {
    const { core, clock } = this.#d;
    const observed = core.served(decisionId, record, clock.now());
    if (observed !== undefined) this.#countObservation(decisionId, observed);
    if (traced !== undefined) this.#serveSpan(traced, observed);
  }

  #count(record: AccessRecord): void {
    const { metrics } = this.#d;
    metrics.requestSeconds.observe(record.durationMs / 1_000);
    const statusClass = statusClasses[Math.floor(record.status / 100)] ?? "other";
    if (record.servedEndpoint === "") return;
    if (record.cluster === relaysCluster) {
      // The relay answered; which engine decoded is what was decided.
      const isMember = this.#d.core.members.get(record.workerId as WorkerId) !== undefined;
      const worker = isMember ? record.workerId : "other";
      metrics.requestsServed.inc({ worker_id: worker, status_class: statusClass });
      return;
    }
    if (!record.cluster.startsWith("pool-")) return;
    if (record.decisionId === "") metrics.unpicked.inc({ reason: "no_decision" });
    else if (record.picked[0] !== record.servedEndpoint)
      metrics.unpicked.inc({ reason: "served_elsewhere" });
    metrics.requestsServed.inc({
      worker_id: this.#memberAt(record.servedEndpoint) ?? "other",
      status_class: statusClass,
    });
  }

  /** The member at an endpoint; members are searched only for the first record of each. */
  #memberAt(endpoint: string): WorkerId | undefined {
    const { members } = this.#d.core;
    const known = this.#members.get(endpoint);
    if (known !== undefined && members.get(known)?.endpoint === endpoint) return known;
    this.#members.delete(endpoint);
    for (const member of members.all()) {
      if (member.endpoint !== endpoint) continue;
      if (this.#members.size > 2 * members.size) this.#members.clear();
      this.#members.set(endpoint, member.key);
      return member.key;
    }
    return undefined;
  }

  #countObservation(decisionId: string, observed: Observation): void {
    const { core, metrics } = this.#d;
    if (observed.status === 200 && observed.ttftMs > 0) {
      metrics.ttftSeconds.observe(observed.ttftMs / 1_000);
    }
    const chosen = core.decisions.byId(decisionId)?.chosen;
    if (chosen !== undefined && observed.servedAsPicked && observed.ttftMs > 0) {
      const error = Math.abs(chosen.predictedTtftMs - observed.ttftMs) / observed.ttftMs;
      metrics.ttftErrorRatio.observe(error);
    }
    const { cachedDifference } = observed;
    if (cachedDifference !== "none" && cachedDifference !== "unknown") {
      metrics.cachedTokenDifference.inc({ cause: cachedDifference });
    }
  }

  #serveSpan(record: TracedRecord, observed: Observation | undefined): void {
    if (!isTraced(record)) return;
    const parent = parseTraceparent(record.traceparent);
    const { core, tracing } = this.#d;
    const decision = core.decisions.byId(record.decisionId);
    const decidedUs = decision?.decidedUnixUs ?? record.startUnixUs;
    const endUs = Math.max(decidedUs, record.startUnixUs + record.durationMs * 1_000);
    const span = tracing.start(spanNames.serve, { parent, startUnixUs: decidedUs });
    if (span === undefined) return;
    const [host, port] = splitEndpoint(record.servedEndpoint);
    const chosen = decision?.chosen;
    const cachedTokens = observed?.cachedTokens ?? -1;
    const observedTtftMs = observed?.ttftMs ?? 0;
    const known = observedTtftMs > 0;
    const predictedTtftMs = chosen?.predictedTtftMs ?? record.predictedTtftMs;
    const answer = decision?.answer ?? "";
    span.set({
      [attributes.decisionId]: record.decisionId,
      [attributes.requestId]: record.requestId,
      [attributes.serverAddress]: host === "" ? undefined : host,
      [attributes.serverPort]: port === "" ? undefined : Number(port),
      [attributes.workerId]: record.workerId,
      [attributes.httpResponseStatusCode]: record.status,
      [attributes.httpResponseBodySize]: record.responseBytes,
      [attributes.servePickedEndpoint]: record.picked[0],
      [attributes.serveEndpoint]: record.servedEndpoint,
      [attributes.serveAsPicked]: record.picked[0] === record.servedEndpoint,
      [attributes.serveAttempts]: record.attempts,
      [attributes.serveResponseFlags]:
        record.responseFlags === "" ? undefined : record.responseFlags,
      [attributes.serveClosedBy]: "access_log",
      [attributes.serveUploadMs]: record.uploadMs,
      [attributes.serveUpstreamStartMs]: record.upstreamStartMs,
      [attributes.serveResponseHeadersMs]: record.responseHeadersMs,
      [attributes.answerForm]: answer === "" ? "unknown" : answer,
      [attributes.predictedTtftMs]: predictedTtftMs,
      [attributes.observedTtftMs]: known ? observedTtftMs : undefined,
      [attributes.observedDurationMs]: record.durationMs,
      [attributes.differenceTtftMs]: known ? observedTtftMs - predictedTtftMs : undefined,
      [attributes.predictedCachedTokens]: chosen?.matchedTokens,
      [attributes.observedCachedTokens]: cachedTokens < 0 ? undefined : cachedTokens,
      [attributes.differenceCachedTokens]:
        cachedTokens < 0 || chosen === undefined ? undefined : cachedTokens - chosen.matchedTokens,
      [attributes.differenceCause]: observed?.cachedDifference,
    });
    const error = errorTypeOf(record);
    if (error !== undefined) span.fail(error);
    span.end(endUs);
  }
}

function splitEndpoint(endpoint: string): [host: string, port: string] {
  const colon = endpoint.lastIndexOf(":");
  if (colon < 0) return ["", ""];
  return [endpoint.slice(0, colon).replace(/^\[|\]$/g, ""), endpoint.slice(colon + 1)];
}
