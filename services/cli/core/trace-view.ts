import { formatCount, formatMs, textTable } from "./text-table.ts";
import { attributes } from "../../shared/core/trace-catalogue.ts";
import { checkComplete, findRoles, type TraceRoles } from "./trace-roles.ts";
import {
  listAt,
  numberAt,
  plainText,
  spanForest,
  textAt,
  type SpanNode,
  type ViewSpan,
  type ViewTrace,
} from "./trace-tree.ts";
import { transferTexts } from "./trace-transfers.ts";
import { ttftParts, whyUnobserved } from "./trace-ttft.ts";

/** How a trace is drawn. */
export interface TraceViewOptions {
  /** Columns of the terminal; at least 60 are used. */
  readonly width: number;
  /** Whether ANSI colours are used. */
  readonly color: boolean;
}

type Paint = (text: string, style: "bold" | "dim" | "red" | "green" | "cyan" | "yellow") => string;

const codes = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const;

/** Deepest indent drawn; spans below it are shown at that depth. */
const depthMax = 12;

function painter(color: boolean): Paint {
  if (!color) return (text) => text;
  return (text, style) => `\u001b[${String(codes[style])}m${text}\u001b[0m`;
}

function fit(text: string, width: number): string {
  return text.length <= width ? text.padEnd(width) : `${text.slice(0, width - 1)}…`;
}

/** A bar at a span's place in the trace; at least one mark, so that short spans stay visible. */
function bar(span: ViewSpan, lengthMs: number, width: number): string {
  const scale = lengthMs > 0 ? width / lengthMs : 0;
  const from = Math.min(width - 1, Math.max(0, Math.floor(span.startMs * scale)));
  const to = Math.min(width, Math.max(from + 1, Math.round(span.endMs * scale)));
  return `${" ".repeat(from)}${"█".repeat(to - from)}`;
}

interface Row {
  readonly label: string;
  readonly span: ViewSpan;
}

function rows(nodes: readonly SpanNode[], stems: string, depth: number): Row[] {
  return nodes.flatMap((node, index) => {
    const isLast = index === nodes.length - 1;
    const branch = depth === 0 ? "" : isLast ? "└─ " : "├─ ";
    const below = depth === 0 || depth > depthMax ? stems : `${stems}${isLast ? "   " : "│  "}`;
    return [
      { label: `${stems}${branch}${node.span.name}`, span: node.span },
      ...rows(node.children, below, depth + 1),
    ];
  });
}

function treeLines(trace: ViewTrace, options: TraceViewOptions, paint: Paint): string[] {
  const all = rows(spanForest(trace.spans), "", 0);
  const width = Math.max(60, options.width);
  const labelWidth = Math.min(
    Math.max(...all.map((row) => row.label.length), 4),
    Math.floor(width * 0.45),
  );
  const serviceWidth = Math.min(Math.max(...all.map((row) => row.span.service.length), 7), 18);
  const barWidth = width - labelWidth - serviceWidth - 26;
  const head = `${fit("span", labelWidth)}  ${fit("process", serviceWidth)}  ${"start".padStart(9)}  ${"took".padStart(9)}`;
  const lines = all.map(({ label, span }) => {
    const took = formatMs(span.endMs - span.startMs).padStart(9);
    const start = formatMs(span.startMs).padStart(9);
    const name = fit(label, labelWidth);
    const drawn = barWidth >= 8 ? `  ${bar(span, trace.lengthMs, barWidth)}` : "";
    const ours = span.name.startsWith("kvmesh.");
    const painted = span.failed ? paint(name, "red") : ours ? paint(name, "bold") : name;
    const marks = span.failed ? paint(drawn, "red") : paint(drawn, ours ? "cyan" : "dim");
    return `${painted}  ${paint(fit(span.service, serviceWidth), "dim")}  ${start}  ${took}${marks}`.trimEnd();
  });
  return [paint(head, "dim"), ...lines];
}

function headLines(trace: ViewTrace, roles: TraceRoles, paint: Paint): string[] {
  const { route, serve } = roles;
  const started = new Date(trace.startUnixMs).toISOString();
  const ids = [
    ["decision", textAt(route, attributes.decisionId)],
    ["request", textAt(route, attributes.requestId)],
  ].flatMap(([name, value]) => (value === undefined ? [] : [`${String(name)} ${value}`]));
  const facts = [
    ["model", textAt(route, attributes.genAiRequestModel)],
    ["pool", textAt(route, attributes.poolId)],
    ["policy", textAt(route, attributes.routePolicy)],
    ["outcome", textAt(route, attributes.routeOutcome)],
    ["worker", workersText(roles)],
  ].flatMap(([name, value]) => (value === undefined ? [] : [`${String(name)} ${value}`]));
  const served = textAt(serve, attributes.serveEndpoint);
  if (serve !== undefined) {
    const asPicked = serve.attributes[attributes.serveAsPicked] === true;
    facts.push(asPicked ? "served as picked" : `served by ${served ?? "nobody"}, not as picked`);
    const attempts = numberAt(serve, attributes.serveAttempts);
    if (attempts !== undefined && attempts !== 1) facts.push(`${String(attempts)} tries`);
    const status = numberAt(serve, attributes.httpResponseStatusCode);
    if (status !== undefined) facts.push(`status ${String(status)}`);
    const flags = textAt(serve, attributes.serveResponseFlags);
    if (flags !== undefined) facts.push(`flags ${flags}`);
    if (textAt(serve, attributes.errorType) === "client_cancel") facts.push("the client went away");
  }
  const title = `trace ${trace.traceId}  ${started}  ${formatMs(trace.lengthMs)}`;
  return [paint(title, "bold"), ids.join(" · "), facts.join(" · ")].filter((line) => line !== "");
}

/** The worker that serves a request, or the two of a pair. */
function workersText({ route, relayed, prefill, decode }: TraceRoles): string | undefined {
  const decoding = textAt(decode, attributes.workerId) ?? textAt(route, attributes.workerId);
  const computing =
    textAt(prefill, attributes.workerId) ?? textAt(route, attributes.routePrefillWorkerId);
  const workers = computing === undefined ? decoding : `${computing} → ${decoding ?? "nobody"}`;
  return relayed === undefined || workers === undefined
    ? workers
    : `${workers} through ${relayed.service}`;
}

function errorLines(trace: ViewTrace, paint: Paint): string[] {
  return trace.spans
    .filter((span) => span.failed)
    .map((span) => {
      const type = textAt(span, attributes.errorType);
      const why = [type, span.statusMessage].filter((text) => text !== undefined && text !== "");
      return paint(`failed: ${span.name}${why.length > 0 ? `: ${why.join(", ")}` : ""}`, "red");
    });
}

function ttftLines(roles: TraceRoles, paint: Paint): string[] {
  const ttft = ttftParts(roles);
  if (ttft.parts.length === 0) return [];
  const whole = ttft.observedMs ?? ttft.sumMs;
  const share = (ms: number): string =>
    whole > 0 ? `${(Math.round((100 * ms) / whole) || 0).toFixed(0)} %` : "";
  const table = ttft.parts.map((part) => [part.name, formatMs(part.ms), share(part.ms)]);
  table.push(["sum", formatMs(ttft.sumMs), share(ttft.sumMs)]);
  if (ttft.observedMs !== undefined && ttft.unexplainedMs !== undefined) {
    table.push(["observed at Envoy", formatMs(ttft.observedMs), ""]);
    const name = `unexplained: ${Math.abs(ttft.unexplainedMs) < 0.01 ? "nothing" : ttft.unexplained}`;
    table.push([name, formatMs(ttft.unexplainedMs), share(ttft.unexplainedMs)]);
  } else table.push([`observed at Envoy: not known (${ttft.unobserved})`, "", ""]);
  const columns = [
    { title: "" },
    { title: "", align: "right" },
    { title: "", align: "right" },
  ] as const;
  const title = `time to first token (router in all ${formatMs(ttft.routerMs)})`;
  return ["", paint(title, "bold"), ...textTable(columns, table).map((line) => `  ${line}`)];
}

const signed = (text: string, value: number): string => (value > 0 ? `+${text}` : text);

function predictionLines(roles: TraceRoles, paint: Paint): string[] {
  const { route, serve, prefill, transfer, decode } = roles;
  const value = (name: string): number | undefined =>
    numberAt(serve, name) ?? numberAt(route, name);
  const onSpan = (span: ViewSpan | undefined, predicted: string, observed: string) => ({
    predicted: numberAt(span, predicted),
    observed: numberAt(span, observed),
  });
  const row = (
    name: string,
    pair: { readonly predicted: number | undefined; readonly observed: number | undefined },
    format: (value: number) => string,
  ): string[][] => {
    const { predicted, observed } = pair;
    if (predicted === undefined && observed === undefined) return [];
    const difference =
      predicted === undefined || observed === undefined
        ? "unknown"
        : signed(format(observed - predicted), observed - predicted);
    const shown = (number: number | undefined): string =>
      number === undefined ? "unknown" : format(number);
    return [[name, shown(predicted), shown(observed), difference]];
  };
  const table = [
    ...row(
      "time to first token",
      { predicted: value(attributes.predictedTtftMs), observed: value(attributes.observedTtftMs) },
      formatMs,
    ),
    ...row(
      "cached tokens",
      {
        predicted: value(attributes.predictedCachedTokens),
        observed: value(attributes.observedCachedTokens),
      },
      formatCount,
    ),
    ...row(
      "prefill",
      onSpan(prefill, attributes.predictedPrefillMs, attributes.observedPrefillMs),
      formatMs,
    ),
    ...row(
      "KV transfer",
      onSpan(transfer, attributes.predictedTransferMs, attributes.observedTransferMs),
      formatMs,
    ),
    ...row(
      "gap between tokens",
      onSpan(decode, attributes.predictedItlMs, attributes.observedItlMs),
      formatMs,
    ),
  ];
  if (table.length === 0) return [];
  const columns = [
    { title: "" },
    { title: "predicted", align: "right" },
    { title: "observed", align: "right" },
    { title: "difference", align: "right" },
  ] as const;
  const cachedKnown = numberAt(serve, attributes.observedCachedTokens) !== undefined;
  const cause = textAt(serve, attributes.differenceCause);
  const regret = numberAt(serve, attributes.routeRegretMs);
  const notes = [
    ...(serve !== undefined && value(attributes.observedTtftMs) === undefined
      ? [`time to first token not observed: ${whyUnobserved(roles)}`]
      : []),
    ...(serve !== undefined && !cachedKnown
      ? ["cached tokens not observed: no news of the engine's cache can be laid to this request"]
      : []),
    ...(cause === undefined || cause === "none" || cause === "unknown"
      ? []
      : [`cause of the difference: ${cause}`]),
    ...(regret === undefined
      ? []
      : [`regret against the best other candidate: ${signed(formatMs(regret), regret)}`]),
  ];
  const lines = [...textTable(columns, table), ...notes].map((line) => `  ${line}`);
  return ["", paint("predicted beside observed", "bold"), ...lines];
}

const candidateColumns = [
  { title: "cost", name: attributes.candidateTotalMs, format: formatMs },
  { title: "queue", name: attributes.candidateQueueMs, format: formatMs },
  { title: "prefill", name: attributes.candidatePrefillMs, format: formatMs },
  { title: "decode", name: attributes.candidateDecodeMs, format: formatMs },
  { title: "slowdown", name: attributes.candidateSlowdownMs, format: formatMs },
  { title: "eviction", name: attributes.candidateEvictionMs, format: formatMs },
  { title: "other", name: attributes.candidateOtherMs, format: formatMs },
  { title: "TTFT", name: attributes.candidatePredictedTtftMs, format: formatMs },
  { title: "cached tokens", name: attributes.candidateMatchedTokens, format: formatCount },
  { title: "open", name: attributes.candidateOpenRequests, format: formatCount },
] as const;

function candidateLines({ route, score }: TraceRoles, paint: Paint): string[] {
  if (score === undefined) return [];
  const ids = listAt(score, attributes.candidateId).map(plainText);
  const columns = candidateColumns.filter(({ name }) => listAt(score, name).length > 0);
  const picked = textAt(route, attributes.workerId);
  const table = ids.map((id, index) => [
    id === picked ? `▸ ${id}` : `  ${id}`,
    ...columns.map(({ name, format }) => {
      const value = listAt(score, name)[index];
      return typeof value === "number" ? format(value) : "–";
    }),
  ]);
  const head = [
    { title: "  worker" },
    ...columns.map(({ title }) => ({ title, align: "right" as const })),
  ];
  const all = numberAt(score, attributes.routeCandidates) ?? ids.length;
  const margin = numberAt(score, attributes.routeMarginMs);
  const tie = textAt(score, attributes.routeTieBreak);
  const filtered = listAt(score, attributes.routeFiltered).map(plainText);
  const notes = [
    ...(margin === undefined ? [] : [`margin ${formatMs(margin)}`]),
    ...(tie === undefined ? [] : [`tie settled by ${tie}`]),
    ...(all > ids.length ? [`${String(all - ids.length)} more candidates not shown`] : []),
    `left out: ${filtered.length === 0 ? "none" : filtered.join(", ")}`,
  ];
  const title = `candidates (${String(all)}), cheapest first`;
  const body = ids.length === 0 ? ["  none"] : textTable(head, table);
  return ["", paint(title, "bold"), ...body, `  ${notes.join(" · ")}`];
}

function movedLines(trace: ViewTrace, paint: Paint): string[] {
  const lines = transferTexts(trace.spans).map((line) => `  ${line}`);
  return lines.length === 0 ? [] : ["", paint("KV moved", "bold"), ...lines];
}

function linkLines(trace: ViewTrace, paint: Paint): string[] {
  const lines = trace.spans.flatMap((span) =>
    span.links.map((link) =>
      link.traceId === trace.traceId
        ? `  ${span.name} → span ${link.spanId}`
        : `  ${span.name} → trace ${link.traceId} span ${link.spanId}`,
    ),
  );
  return lines.length === 0 ? [] : ["", paint("links", "bold"), ...lines];
}

function completeLine(trace: ViewTrace, roles: TraceRoles, paint: Paint): string {
  const { missing } = checkComplete(trace, roles);
  const spans = `${String(trace.spans.length)} spans`;
  return missing.length === 0
    ? paint(`complete: yes, ${spans}`, "green")
    : paint(`complete: no, ${spans}; missing: ${missing.join(", ")}`, "yellow");
}

function clockLine(trace: ViewTrace): string[] {
  const offsets = new Map<string, number>();
  for (const span of trace.spans) {
    if (span.clockOffsetMs !== 0) offsets.set(span.service, span.clockOffsetMs);
  }
  if (offsets.size === 0) return [];
  const each = [...offsets].map(([service, ms]) => `${service} ${signed(formatMs(ms), ms)}`);
  return [`clocks corrected: ${each.join(", ")}`];
}

/**
 * A trace as text for a terminal: identity, span tree with a time bar, parts of the time to first token, predictions
 * beside observations, candidates, links, and whether anything is missing. Text of other processes is stripped of
 * control characters. Ends without a newline.
 */
export function renderTrace(trace: ViewTrace, options: TraceViewOptions): string {
  const paint = painter(options.color);
  if (trace.spans.length === 0) return `trace ${trace.traceId} has no spans`;
  const roles = findRoles(trace);
  return [
    ...headLines(trace, roles, paint),
    "",
    ...treeLines(trace, options, paint),
    ...errorLines(trace, paint),
    ...ttftLines(roles, paint),
    ...predictionLines(roles, paint),
    ...movedLines(trace, paint),
    ...candidateLines(roles, paint),
    ...linkLines(trace, paint),
    "",
    ...clockLine(trace),
    completeLine(trace, roles, paint),
  ].join("\n");
}
