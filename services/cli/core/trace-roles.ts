import { attributes, spanNames } from "../../shared/core/trace-catalogue.ts";
import { numberAt, spanForest, textAt, type ViewSpan, type ViewTrace } from "./trace-tree.ts";

/** The spans of a request by what they stand for; absent ones did not arrive. */
export interface TraceRoles {
  readonly ingress: ViewSpan | undefined;
  readonly extProc: ViewSpan | undefined;
  readonly route: ViewSpan | undefined;
  readonly body: ViewSpan | undefined;
  readonly tokenize: ViewSpan | undefined;
  readonly lookup: ViewSpan | undefined;
  readonly score: ViewSpan | undefined;
  readonly serve: ViewSpan | undefined;
  /** Envoy's tries upstream, in order. */
  readonly tries: readonly ViewSpan[];
  /** The engine's span of the last try; the only one unless tries failed inside engines, or a relay ran several legs. */
  readonly engine: ViewSpan | undefined;
  /** The request on its way through a relay, the last try of it; absent for requests that pass none. */
  readonly relayed: ViewSpan | undefined;
  readonly prefill: ViewSpan | undefined;
  readonly transfer: ViewSpan | undefined;
  readonly decode: ViewSpan | undefined;
  readonly stream: ViewSpan | undefined;
}

/** Finds the spans of a request. Of several with one name the last stands, which is the one that counted. */
export function findRoles(trace: ViewTrace): TraceRoles {
  const last = (name: string): ViewSpan | undefined =>
    trace.spans.findLast((span) => span.name === name);
  return {
    ingress: trace.spans.find((span) => span.name === spanNames.ingress),
    extProc: trace.spans.findLast((span) => /^async .*ext_proc.* egress$/u.test(span.name)),
    route: last(spanNames.route),
    body: last(spanNames.routeBody),
    tokenize: last(spanNames.routeTokenize),
    lookup: last(spanNames.routeLookup),
    score: last(spanNames.routeScore),
    serve: last(spanNames.serve),
    tries: trace.spans.filter((span) => /^router .+ egress$/u.test(span.name)),
    engine: last(spanNames.llmRequest),
    relayed: last(spanNames.request),
    prefill: last(spanNames.prefill),
    transfer: last(spanNames.kvTransfer),
    decode: last(spanNames.decode),
    stream: last(spanNames.stream),
  };
}

/** Whether everything that should be in a trace is there. */
export interface Completeness {
  /** What is missing, as phrases; empty when the trace is complete. */
  readonly missing: readonly string[];
}

function expectRouter(roles: TraceRoles, missing: string[]): void {
  const { route } = roles;
  if (route === undefined) {
    missing.push("kvmesh.route (the router did not decide, or does not trace)");
    return;
  }
  const picked = textAt(route, attributes.routeOutcome) === "picked";
  if (roles.body === undefined && picked) missing.push(spanNames.routeBody);
  if (picked && textAt(route, attributes.routeLoadOnlyReason) === undefined) {
    if (roles.tokenize === undefined) missing.push(spanNames.routeTokenize);
    if (roles.lookup === undefined) missing.push(spanNames.routeLookup);
  }
  if (picked && roles.score === undefined) missing.push(spanNames.routeScore);
  if (picked && roles.serve === undefined) {
    missing.push("kvmesh.serve (arrives when the request has ended)");
  }
}

function expectEnvoyAndEngine(roles: TraceRoles, missing: string[]): void {
  if (roles.route?.attributes[attributes.parentUnsampled] === true) return;
  if (roles.ingress === undefined) missing.push("ingress (Envoy sends spans some seconds late)");
  if (roles.extProc === undefined && roles.route !== undefined)
    missing.push("Envoy's ext_proc span");
  const picked = textAt(roles.route, attributes.routeOutcome) === "picked";
  const attempts = numberAt(roles.serve, attributes.serveAttempts) ?? (picked ? 1 : 0);
  if (roles.tries.length < attempts) {
    missing.push(`${String(attempts - roles.tries.length)} of ${String(attempts)} upstream tries`);
  }
  if (picked && roles.engine === undefined) {
    missing.push("llm_request (the engine failed or does not trace)");
  }
}

/** What a relay's spans say is missing of them, and a relay that the decision names but that wrote none. */
function expectRelay(trace: ViewTrace, roles: TraceRoles, missing: string[]): void {
  const { relayed, route } = roles;
  if (relayed === undefined) {
    if (textAt(route, attributes.routeMode) === "pd") {
      missing.push(
        "kvmesh.request (the relay's; it does not trace, or the request never reached it)",
      );
    }
    return;
  }
  const expected = numberAt(relayed, attributes.traceSpansExpected);
  const written = trace.spans.filter(({ name }) => relaySpans.has(name)).length;
  if (expected !== undefined && written < expected) {
    missing.push(`${String(expected - written)} of ${String(expected)} relay spans`);
  }
}

/** Spans that relays write. */
const relaySpans: ReadonlySet<string> = new Set([
  spanNames.request,
  spanNames.prefill,
  spanNames.kvTransfer,
  spanNames.decode,
  spanNames.stream,
]);

/** Whether a span is one that routers write. */
const isRouterSpan = ({ name }: ViewSpan): boolean =>
  name === spanNames.serve || name.startsWith(spanNames.route);

/**
 * Compares a trace with what its own outcome says must be there: Envoy's spans, the router's by outcome, one upstream
 * span per try, the engine's; with the router's own count when it gave one; and every parent.
 */
export function checkComplete(trace: ViewTrace, roles: TraceRoles): Completeness {
  const missing: string[] = [];
  expectRouter(roles, missing);
  expectEnvoyAndEngine(roles, missing);
  expectRelay(trace, roles, missing);
  const expected = numberAt(roles.route, attributes.traceSpansExpected);
  const ours = trace.spans.filter(isRouterSpan).length;
  if (expected !== undefined && ours < expected && missing.length === 0) {
    missing.push(`${String(expected - ours)} of ${String(expected)} router spans`);
  }
  const orphans = spanForest(trace.spans).filter(
    ({ orphan, span }) => orphan && span !== roles.ingress,
  );
  for (const { span } of orphans) {
    if (missing.length === 0) missing.push(`the parent ${span.parentSpanId} of ${span.name}`);
  }
  if (trace.droppedSpans > 0) {
    missing.push(`${String(trace.droppedSpans)} spans that the store left out`);
  }
  return { missing };
}
