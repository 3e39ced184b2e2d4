import { randomUUID } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { toServiceError, unary } from "../../shared/edge/grpc-server.ts";
import type {
  ExplainRequest,
  ExplainResponse,
  PlaceRequest,
  PlaceResponse,
  ReleaseRequest,
  ReleaseResponse,
  RouterServer,
  SetPolicyRequest,
  SetPolicyResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { readHints, type RequestHints } from "../core/admission/request-hints.ts";
import type { Decision } from "../core/decisions/decision.ts";
import { reweigh } from "../core/decisions/what-if.ts";
import { costTerms } from "../core/placement/candidate.ts";
import { disaggregationModes } from "../core/placement/pairs/pair-placer.ts";
import { isPolicyName, policyNames } from "../core/placement/policy.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { Decider } from "./decider.ts";
import { candidateToWire, decisionToWire } from "./decision-wire.ts";
import type { PeerLinks } from "./peer-links.ts";
import { watchersMax, type PlacementWatchers, type TopologyWatchers } from "./watchers.ts";

/** What the Router service needs. */
export interface RouterServiceDependencies {
  readonly core: RouterCore;
  readonly decider: Decider;
  readonly clock: Clock;
  readonly peers: PeerLinks;
  readonly placements: PlacementWatchers;
  readonly topology: TopologyWatchers;
  readonly instance: string;
  readonly defaultPool: string;
  /** Carries out what the core wants done after a change. */
  readonly settle: () => void;
}

/** Workers that a request may exclude. */
const excludedMax = 64;

/** A call's metadata by the names of request headers. */
function hintsOf(metadata: Metadata): RequestHints {
  return readHints((name) => {
    const [value] = metadata.get(name);
    return typeof value === "string" ? value : undefined;
  }, undefined);
}

/** Decides on a request in its turn; a caller that leaves, or whose deadline passes, waits no longer. */
async function place(
  d: RouterServiceDependencies,
  request: PlaceRequest,
  call: { readonly signal: AbortSignal; readonly metadata: Metadata },
): Promise<PlaceResponse> {
  const { prompt } = request;
  const { excludedWorkerIds } = request;
  if (excludedWorkerIds.length > excludedMax) {
    throw new MeshError("invalid_request", `excluded_worker_ids: at most ${excludedMax}`, {
      field: "excluded_worker_ids",
    });
  }
  const shared = {
    requestId: request.requestId === "" ? randomUUID() : request.requestId,
    subset: request.subset.length === 0 ? undefined : new Set(request.subset),
    ...(excludedWorkerIds.length === 0 ? {} : { excluded: new Set(excludedWorkerIds) }),
    dryRun: request.dryRun,
    turn: { hints: hintsOf(call.metadata), signal: call.signal },
  };
  let decision: Decision;
  let placement = "";
  switch (prompt?.$case) {
    case "body":
      ({ decision, placement } = await d.decider.placeBody({
        ...shared,
        path: prompt.value.path,
        json: prompt.value.json,
      }));
      break;
    case "tokens": {
      const { model, ids, tokensMax } = prompt.value;
      const limit = tokensMax === 0 ? undefined : tokensMax;
      decision = await d.decider.placeTokens({ ...shared, model, ids, tokensMax: limit });
      break;
    }
    case undefined:
      throw new MeshError("invalid_request", "prompt: give a body or tokens", { field: "prompt" });
  }
  d.settle();
  return { decision: decisionToWire(decision), placement };
}

function findLocally(core: RouterCore, request: ExplainRequest): Decision | undefined {
  switch (request.key?.$case) {
    case "decisionId":
      return core.decisions.byId(request.key.value);
    case "requestId":
      return core.decisions.byRequest(request.key.value);
    case "last":
      return core.decisions.last;
    case undefined:
      throw new MeshError("invalid_request", "key: give a decision id, a request id or last", {
        field: "key",
      });
  }
}

function readWeights(request: ExplainRequest): ReadonlyMap<string, number> {
  const weights = new Map(Object.entries(request.whatIfWeights));
  for (const [name, weight] of weights) {
    if (!(costTerms as readonly string[]).includes(name)) {
      throw new MeshError(
        "invalid_request",
        `what-if term ${name} does not exist; terms: ${costTerms.join(", ")}`,
        { field: "what_if_weights" },
      );
    }
    if (!Number.isFinite(weight) || weight < 0) {
      throw new MeshError("invalid_request", `what-if weight of ${name} must be 0 or more`, {
        field: "what_if_weights",
      });
    }
  }
  return weights;
}

/** The decision or request asked for, by its kind and id. */
function nameOf({ key }: ExplainRequest): string {
  switch (key?.$case) {
    case "decisionId":
      return `decision ${key.value}`;
    case "requestId":
      return `request ${key.value}`;
    default:
      return "this decision";
  }
}

async function explain(
  d: RouterServiceDependencies,
  request: ExplainRequest,
  signal: AbortSignal,
): Promise<ExplainResponse> {
  const weights = readWeights(request);
  const local = findLocally(d.core, request);
  if (!request.localOnly) {
    const others = await d.peers.explain(request, signal);
    const newest = others
      .filter((other) => other.decision !== undefined)
      .sort((a, b) =>
        Number((b.decision?.decidedUnixUs ?? 0n) - (a.decision?.decidedUnixUs ?? 0n)),
      )[0];
    const localAt = BigInt(local?.decidedUnixUs ?? 0);
    if (newest !== undefined && (newest.decision?.decidedUnixUs ?? 0n) > localAt) return newest;
  }
  if (local === undefined) {
    throw new MeshError(
      "not_found",
      request.key?.$case === "last"
        ? "no decision has been made yet"
        : `no router knows ${nameOf(request)}; the newest decisions are kept (limits.decisionsMax)`,
    );
  }
  if (weights.size === 0) {
    return { decision: decisionToWire(local), whatIfWorkerId: "", whatIfCandidates: [] };
  }
  const candidates = reweigh(local.candidates, weights);
  return {
    decision: decisionToWire(local),
    whatIfWorkerId: candidates[0]?.workerId ?? "",
    whatIfCandidates: candidates.map(candidateToWire),
  };
}

async function setPolicy(
  d: RouterServiceDependencies,
  request: SetPolicyRequest,
): Promise<SetPolicyResponse> {
  const { policy, placeOnArrival } = request;
  if (!isPolicyName(policy)) {
    throw new MeshError(
      "invalid_request",
      `policy ${JSON.stringify(policy)} does not exist; policies: ${policyNames.join(", ")}`,
      { field: "policy" },
    );
  }
  const mode = disaggregationModes.find((one) => one === request.disaggregation);
  if (mode === undefined && request.disaggregation !== undefined) {
    throw new MeshError(
      "invalid_request",
      `disaggregation ${JSON.stringify(request.disaggregation)} does not exist; it is ${disaggregationModes.join(", ")}`,
      { field: "disaggregation" },
    );
  }
  const all = new Set([d.defaultPool, ...[...d.core.members.all()].map((m) => m.pool)]);
  const pools = request.pool === "" ? [...all] : [request.pool];
  let previousPolicy = "";
  for (const pool of pools) {
    previousPolicy = d.core.setPolicy(pool, policy);
    d.core.setPlaceOnArrival(pool, placeOnArrival);
    if (mode !== undefined) d.core.pairs.setMode(pool, mode);
  }
  d.topology.changed();
  const others = request.propagate ? await d.peers.setPolicy({ ...request, propagate: false }) : [];
  return { previousPolicy, appliedBy: [d.instance, ...others] };
}

/** The Router service. */
export function createRouterService(d: RouterServiceDependencies): RouterServer {
  const full = (): MeshError =>
    new MeshError("overloaded", `${watchersMax} watch streams are open already`, {
      retryAfterMs: 5_000,
    });
  return {
    place: unary<PlaceRequest, PlaceResponse>((request, signal, metadata) =>
      place(d, request, { signal, metadata }),
    ),
    release: unary<ReleaseRequest, ReleaseResponse>((request) => {
      const wasOpen = d.core.release(request.decisionId, d.clock.now());
      d.settle();
      return { wasOpen };
    }),
    explain: unary<ExplainRequest, ExplainResponse>((request, signal) =>
      explain(d, request, signal),
    ),
    setPolicy: unary<SetPolicyRequest, SetPolicyResponse>((request) => setPolicy(d, request)),
    watchPlacements: (call) => {
      if (d.placements.full) call.emit("error", toServiceError(full()));
      else d.placements.add(call);
    },
    watchTopology: (call) => {
      if (d.topology.full) call.emit("error", toServiceError(full()));
      else d.topology.add(call);
    },
  };
}
