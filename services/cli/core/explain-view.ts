import type {
  Candidate,
  Decision,
  ExplainResponse,
  Observation,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { chosenPair, formText, guardText, itlText, pairLines } from "./explain-pair-view.ts";
import { formatCount, formatMs, textTable, type Column } from "./text-table.ts";

/** Names of `Outcome` by number. */
const outcomes = ["unspecified", "placed", "no worker", "refused"] as const;

/** The whole of a decision as lines of text: every candidate, every term, every reason, and what happened. */
export function explainView(response: ExplainResponse): string[] {
  const { decision } = response;
  if (decision === undefined) return ["the router answered without a decision"];
  return [
    ...heading(decision),
    "",
    ...pairLines(decision),
    // Of a pair they are what running whole would have cost, and none of them was taken.
    ...candidateLines(
      decision.candidates,
      chosenPair(decision) === undefined ? decision.workerId : "",
    ),
    ...filteredLines(decision),
    ...leftOutLines(decision),
    ...marginLines(decision),
    "",
    ...observedLines(decision),
    ...whatIfLines(response, decision),
  ];
}

/** The same as a value for `--json`: wire fields, 64-bit numbers as text, outcome by name. */
export function explainJson(response: ExplainResponse): unknown {
  const { decision } = response;
  return toJson({
    schema: 1,
    decision:
      decision === undefined
        ? null
        : { ...decision, outcome: outcomes[decision.outcome].replace(" ", "_") },
    whatIf:
      response.whatIfCandidates.length === 0
        ? null
        : { workerId: response.whatIfWorkerId, candidates: response.whatIfCandidates },
  });
}

/** A value with bigints as decimal text and absent fields as null, fit for JSON. */
export function toJson(value: unknown): unknown {
  if (typeof value === "bigint") return value.toString();
  if (value === undefined) return null;
  if (Array.isArray(value)) return value.map(toJson);
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, toJson(inner)]));
  }
  return value;
}

function heading(decision: Decision): string[] {
  const at = new Date(Number(decision.decidedUnixUs / 1_000n)).toISOString();
  const facts: [string, string][] = [
    ["decision", decision.id],
    ["request", decision.requestId],
    ["trace", decision.traceId === "" ? "not traced" : decision.traceId],
    ["made", `${at}, in ${decision.decideUs.toFixed(0)} µs by policy ${decision.policy}`],
    ["model", `${decision.model} (pool ${decision.pool === "" ? "none" : decision.pool})`],
    [
      "prompt",
      `${formatCount(decision.promptTokens)} tokens, ${formatCount(decision.promptBlocks)} full blocks; answer assumed ${formatCount(decision.expectedOutputTokens)} tokens`,
    ],
    ["outcome", outcomeText(decision)],
  ];
  const form = formText(decision);
  if (form !== undefined) facts.push(["form", form]);
  const itl = itlText(decision);
  if (itl !== undefined) facts.push(["between tokens", itl]);
  const guard = guardText(decision);
  if (guard !== undefined) facts.push(["guard", guard]);
  if (decision.endpoints.length > 0) facts.push(["endpoints", endpointsText(decision.endpoints)]);
  if (decision.loadOnlyReason !== "") facts.push(["by load only", decision.loadOnlyReason]);
  const { admission } = decision;
  if (admission !== undefined && admission.waitedMs > 0) {
    const { className, waitedMs, position, blockedBy } = admission;
    const queue = `${String(position)} before it in class ${className}, for ${blockedBy}`;
    facts.push(["waited", `${formatMs(waitedMs)}, ${queue}`]);
  }
  if (admission !== undefined && admission.shedReason !== "") {
    const retry = formatMs(admission.retryAfterMs);
    facts.push(["shed", `${admission.shedReason}, told to try again in ${retry}`]);
  }
  facts.push(["index age", formatMs(decision.indexAgeMs)]);
  return textTable([{ title: "" }, { title: "" }], facts);
}

function outcomeText(decision: Decision): string {
  const name = outcomes[decision.outcome];
  if (decision.errorCode !== "") return `${name}: ${decision.errorCode}, ${decision.errorMessage}`;
  return decision.workerId === "" ? name : `${name} on ${decision.workerId}`;
}

function endpointsText(endpoints: readonly string[]): string {
  const [first = "", ...others] = endpoints;
  return others.length === 0 ? first : `${first}, then ${others.join(", ")}`;
}

function termNames(candidates: readonly Candidate[]): string[] {
  return [...new Set(candidates.flatMap((one) => one.terms.map((term) => term.name)))];
}

/** Terms that are times; those of other policies are counts, ranks and scores. */
const timeTerms: ReadonlySet<string> = new Set([
  "queue",
  "memory",
  "stall",
  "prefill",
  "tail",
  "decode",
  "slowdown",
  "eviction",
  "affinity",
]);

/** A cost or one of its terms: a time only where all of its terms are times. */
function costText(value: number, terms: readonly string[]): string {
  if (terms.every((name) => timeTerms.has(name))) return formatMs(value);
  return Number.isInteger(value) ? formatCount(value) : value.toFixed(3);
}

function candidateLines(candidates: readonly Candidate[], chosen: string): string[] {
  if (candidates.length === 0) return ["candidates  none"];
  const names = termNames(candidates);
  const costs: Column[] = [
    { title: "" },
    { title: "candidate" },
    { title: "cost", align: "right" },
    ...names.map((title): Column => ({ title, align: "right" })),
    { title: "predicted TTFT", align: "right" },
    { title: "" },
  ];
  const costRows = candidates.map((one) => [
    one.workerId === chosen ? "→" : "",
    one.workerId,
    costText(one.costMs, termNames([one])),
    ...names.map((name) => {
      const term = one.terms.find((candidate) => candidate.name === name);
      return term === undefined ? "–" : costText(term.ms, [name]);
    }),
    formatMs(one.predictedTtftMs),
    one.suspect ? "suspect: its block view is being resynchronised" : "",
  ]);
  const facts: Column[] = [
    { title: "" },
    { title: "candidate" },
    { title: "endpoint" },
    { title: "matched blocks", align: "right" },
    { title: "tokens", align: "right" },
    { title: "open", align: "right" },
    { title: "prefill queue", align: "right" },
    { title: "running+waiting", align: "right" },
    { title: "as of", align: "right" },
  ];
  const factRows = candidates.map((one) => [
    one.workerId === chosen ? "→" : "",
    one.workerId,
    one.endpoint,
    formatCount(one.matchedBlocks),
    formatCount(one.matchedTokens),
    formatCount(one.openRequests),
    formatCount(one.queuedPrefillTokens),
    `${formatCount(one.reportedRunning)}+${formatCount(one.reportedWaiting)}`,
    formatMs(one.reportedAgeMs),
  ]);
  return [...textTable(costs, costRows), "", ...textTable(facts, factRows)];
}

function filteredLines(decision: Decision): string[] {
  if (decision.filtered.length === 0) return [];
  return [
    "",
    ...textTable(
      [{ title: "filtered out" }, { title: "endpoint" }, { title: "reason" }],
      decision.filtered.map((one) => [one.workerId, one.endpoint, one.reason]),
    ),
  ];
}

function leftOutLines({ leftOut }: Decision): string[] {
  if (leftOut === 0) return [];
  const workers = leftOut === 1 ? "candidate" : "candidates";
  return ["", `and ${formatCount(leftOut)} more ${workers} not kept`];
}

function marginLines(decision: Decision): string[] {
  if (decision.candidates.length < 2) return [];
  const tie = decision.tieBreak === "" ? "" : `; a tie, settled by ${decision.tieBreak}`;
  return [
    "",
    `margin  ${costText(decision.marginMs, termNames(decision.candidates))} to the second candidate${tie}`,
  ];
}

function observedLines(decision: Decision): string[] {
  const { observed } = decision;
  if (observed === undefined) {
    return decision.workerId === ""
      ? ["observed  nothing: the request went to no worker"]
      : ["observed  not yet: the request still runs, or its end has not been heard"];
  }
  const pair = chosenPair(decision);
  const candidate = decision.candidates.find((one) => one.workerId === decision.workerId);
  const predicted = pair ?? candidate;
  const matchedTokens = pair?.prefillMatchedTokens ?? candidate?.matchedTokens;
  const rows = [
    [
      "TTFT",
      predicted === undefined ? "–" : formatMs(predicted.predictedTtftMs),
      ...ttftCells(decision, observed),
    ],
    [
      "cached tokens",
      matchedTokens === undefined ? "–" : formatCount(matchedTokens),
      ...cachedCells(decision, observed),
    ],
    [
      "served by",
      decision.endpoints[0] ?? "–",
      observed.servedEndpoint === "" ? "nobody" : observed.servedEndpoint,
      observed.servedAsPicked ? "" : "not as picked",
    ],
  ];
  return [
    ...textTable(
      [
        { title: "" },
        { title: "predicted", align: "right" },
        { title: "observed", align: "right" },
        { title: "" },
      ],
      rows,
    ),
    endText(observed),
  ];
}

/** Observed time to first token, and why there is none. */
function ttftCells({ answer }: Decision, observed: Observation): [shown: string, note: string] {
  if (observed.ttftMs > 0) return [formatMs(observed.ttftMs), ""];
  if (answer === "whole") return ["–", "(not streamed: its first byte came when all was done)"];
  if (answer === "") return ["–", "(whether its answer was streamed was not read)"];
  return ["never came", ""];
}

/** Observed cached tokens, and why they differ or are not known. */
function cachedCells(decision: Decision, observed: Observation): [shown: string, note: string] {
  const { cachedTokens, cachedDifference } = observed;
  if (cachedTokens >= 0) {
    const none = decision.promptBlocks === 0 ? "(no full block to reuse)" : "";
    const differs = cachedDifference !== "" && cachedDifference !== "none";
    return [formatCount(cachedTokens), differs ? `(${cachedDifference})` : none];
  }
  return ["unknown", `(${whyUnknown(decision, observed)})`];
}

function whyUnknown({ loadOnlyReason }: Decision, observed: Observation): string {
  if (loadOnlyReason !== "") return "its prompt was not read as tokens";
  if (observed.closedBy !== "access_log") return "its end was not heard";
  if (!observed.servedAsPicked) return "not served as picked";
  return "no news of the engine's cache can be laid to it";
}

/** Whether the client went away before the answer had ended: its connection closed, or it reset its stream. */
function isAbandoned({ responseFlags }: Observation): boolean {
  return responseFlags.split(",").some((flag) => flag === "DC" || flag === "DR");
}

function endText(observed: Observation): string {
  const flags = observed.responseFlags === "" ? "" : `, flags ${observed.responseFlags}`;
  const tries =
    observed.attempts === 1 ? "1 attempt" : `${formatCount(observed.attempts)} attempts`;
  const facts = `status ${observed.status} after ${formatMs(observed.durationMs)}, ${tries}, ${formatCount(observed.responseBytes)} bytes${flags}; closed by ${observed.closedBy}`;
  return isAbandoned(observed)
    ? `ended  by the client, which went away before the answer was complete: ${facts}`
    : `ended  ${facts}`;
}

function whatIfLines(response: ExplainResponse, decision: Decision): string[] {
  if (response.whatIfCandidates.length === 0) return [];
  const verdict =
    response.whatIfWorkerId === decision.workerId
      ? `what if: the same worker, ${decision.workerId}`
      : `what if: ${response.whatIfWorkerId} instead of ${decision.workerId === "" ? "none" : decision.workerId}`;
  return ["", verdict, ...candidateLines(response.whatIfCandidates, response.whatIfWorkerId)];
}
