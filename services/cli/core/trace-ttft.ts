import { attributes } from "../../shared/core/trace-catalogue.ts";
import type { TraceRoles } from "./trace-roles.ts";
import { numberAt, textAt, type ViewSpan } from "./trace-tree.ts";

/** One stretch of the way to the first token. */
export interface TtftPart {
  readonly name: string;
  readonly ms: number;
  /** Part of the router's own time. */
  readonly ofRouter: boolean;
}

/** A stretch as it is found; `gap` says where it is missing when no span measured it. */
type Add = (name: string, ms: number | undefined, gap: string, ofRouter?: boolean) => void;

/** Where the time to the first token went. */
export interface TtftParts {
  /** In order of time; only what spans measured. */
  readonly parts: readonly TtftPart[];
  /** Sum of the parts, ms. */
  readonly sumMs: number;
  /** Of the parts that are the router's, ms. */
  readonly routerMs: number;
  /** As Envoy's access log had it; `undefined` until the request has ended, and where no first token can be seen. */
  readonly observedMs: number | undefined;
  /** Why nothing was observed, in words; empty when something was. */
  readonly unobserved: string;
  /** Observed minus sum; `undefined` when nothing was observed. */
  readonly unexplainedMs: number | undefined;
  /** Where the remainder must be, in words. */
  readonly unexplained: string;
}

const lengthOf = (span: ViewSpan): number => span.endMs - span.startMs;

/**
 * Splits the time to the first token into stretches that do not overlap, from Envoy's first byte on: until the router,
 * its steps, from its answer to the engine (failed tries apart), the engine's queue, prefill and rest, and from the
 * engine's first token to Envoy's first byte. Through a relay the stretches between are the relay's: its own time, prefill, the
 * rest of the KV transfer, decode's first step, and what failed before. A stretch that no span measured is not guessed: it stays in the
 * remainder, which names it. A negative stretch means that clocks disagree; it counts as 0 and shows in the remainder.
 */
export function ttftParts(roles: TraceRoles): TtftParts {
  const parts: TtftPart[] = [];
  const gaps: string[] = [];
  const negative: string[] = [];
  const add = (name: string, ms: number | undefined, gap: string, ofRouter = false): void => {
    if (ms === undefined) {
      if (gap !== "") gaps.push(gap);
      return;
    }
    // Clock readings are good to some microseconds.
    if (ms < -0.05) negative.push(name);
    parts.push({ name, ms: Math.max(0, ms), ofRouter });
  };

  const { ingress, route } = roles;
  add(
    "client → router",
    ingress && route && route.startMs - ingress.startMs,
    "before the router (no ingress span)",
  );
  addRouterParts(roles, add);
  const observedMs = numberAt(roles.serve, attributes.observedTtftMs);
  const firstByteAt =
    ingress !== undefined && observedMs !== undefined ? ingress.startMs + observedMs : undefined;
  if (roles.relayed === undefined) addEngineParts(roles, firstByteAt, add);
  else addRelayParts(roles, firstByteAt, add);

  const sumMs = parts.reduce((sum, part) => sum + part.ms, 0);
  const routerMs = parts.reduce((sum, part) => sum + (part.ofRouter ? part.ms : 0), 0);
  const unexplainedMs = observedMs === undefined ? undefined : observedMs - sumMs;
  if (negative.length > 0) gaps.push(`clocks disagree at ${negative.join(", ")}`);
  return {
    parts,
    sumMs,
    routerMs,
    observedMs,
    unobserved: observedMs === undefined ? whyUnobserved(roles) : "",
    unexplainedMs,
    unexplained: gaps.length === 0 ? "rounding" : gaps.join("; "),
  };
}

/** Why a trace has no observed time to first token. */
export function whyUnobserved({ serve }: TraceRoles): string {
  if (serve === undefined) return "no kvmesh.serve span";
  const form = textAt(serve, attributes.answerForm);
  if (form === "whole") return "not streamed: its first byte came when all was done";
  if (form === "unknown") return "whether its answer was streamed was not read";
  return "no byte of its answer came";
}

function addRouterParts(roles: TraceRoles, add: Add): void {
  const { route } = roles;
  if (route === undefined) {
    add("", undefined, "in the router (no kvmesh.route span)");
    return;
  }
  const steps: readonly (readonly [string, ViewSpan | undefined])[] = [
    ["body wait", roles.body],
    ["tokenize", roles.tokenize],
    ["lookup", roles.lookup],
    ["score", roles.score],
  ];
  let inSteps = 0;
  for (const [name, span] of steps) {
    if (span === undefined) continue;
    add(name, lengthOf(span), "", true);
    inSteps += Math.max(0, lengthOf(span));
  }
  add("router, the rest", lengthOf(route) - inSteps, "", true);
}

/** The engine's stretches, and from its first token to Envoy's first byte. */
function addEngineParts(roles: TraceRoles, firstByteAt: number | undefined, add: Add): void {
  const { engine } = roles;
  addHopParts(roles, engine, "engine", add);
  const engineTtftMs = seconds(engine, attributes.engineTtftSeconds);
  const queueMs = seconds(engine, attributes.engineQueueSeconds);
  const prefillMs = seconds(engine, attributes.enginePrefillSeconds);
  add("engine queue", queueMs, engine ? "engine queue" : "");
  add("engine prefill", prefillMs, engine ? "engine prefill" : "");
  const known = (queueMs ?? 0) + (prefillMs ?? 0);
  add("engine, the rest", engineTtftMs === undefined ? undefined : engineTtftMs - known, "");
  if (engine === undefined) {
    add("", undefined, "from the router's answer on (no llm_request span)");
    return;
  }
  const firstTokenAt = engineTtftMs === undefined ? undefined : engine.startMs + engineTtftMs;
  add(
    "first token → first byte at Envoy",
    firstByteAt === undefined || firstTokenAt === undefined
      ? undefined
      : firstByteAt - firstTokenAt,
    firstByteAt === undefined ? "" : "from the engine's first token to the client",
  );
}

/** The relay's stretches, which add up to its own time to first byte, and from there to Envoy's first byte. */
function addRelayParts(roles: TraceRoles, firstByteAt: number | undefined, add: Add): void {
  const { relayed, stream, prefill, decode } = roles;
  addHopParts(roles, relayed, "relay", add);
  const part = (name: string): number | undefined => numberAt(relayed, name);
  const at = (span: ViewSpan | undefined): string => {
    const worker = textAt(span, attributes.workerId);
    return worker === undefined ? "" : ` on ${worker}`;
  };
  add("relay", part(attributes.ttftRelayMs), "in the relay");
  const retryMs = part(attributes.ttftRetryMs);
  if (retryMs !== undefined && retryMs > 0) add("legs that failed", retryMs, "");
  if (prefill !== undefined) {
    add(`prefill${at(prefill)}`, part(attributes.ttftPrefillMs), "prefill");
    add("KV transfer, what prefill did not hide", part(attributes.ttftTransferMs), "KV transfer");
  }
  const first = prefill === undefined ? "prefill and first step" : "first step";
  add(`${first}${at(decode)}`, part(attributes.ttftDecodeMs), "decode's first step");
  const ttftMs = numberAt(stream, attributes.streamTtftMs);
  add(
    "relay → first byte at Envoy",
    firstByteAt === undefined || ttftMs === undefined || relayed === undefined
      ? undefined
      : firstByteAt - relayed.startMs - ttftMs,
    firstByteAt === undefined ? "" : "from the relay's first byte to the client",
  );
}

/** From the router's answer to who carries the request out: the hop itself, and the tries before the last one. */
function addHopParts(roles: TraceRoles, to: ViewSpan | undefined, name: string, add: Add): void {
  const { route, tries } = roles;
  if (to === undefined || route === undefined) return;
  const first = tries[0];
  const last = tries.at(-1);
  const failedTries = first && last && first !== last ? last.startMs - first.startMs : 0;
  if (failedTries > 0) add(`${String(tries.length - 1)} failed tries`, failedTries, "");
  add(`Envoy → ${name}`, to.startMs - route.endMs - failedTries, "");
}

function seconds(span: ViewSpan | undefined, name: string): number | undefined {
  const value = numberAt(span, name);
  return value === undefined ? undefined : value * 1_000;
}
