import type {
  Decision,
  PairCandidate,
  PairChoice,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { formatCount, formatMs, textTable, type Column } from "./text-table.ts";

/** Why a form was chosen, for people, by the word on the wire. */
const reasons: Readonly<Record<string, string>> = {
  cheaper: "it costs less",
  always: "the router is set to always pair (placement.disaggregation)",
  only_form: "nobody could take it in the other form",
  no_relay: "no relay that speaks the engines' protocol is attached and has room",
  no_pair: "no two workers could serve it",
  no_room: "admission has no room for it on the best pair",
  request_form:
    "it cannot be split: not chat or completions, several answers, or its prompt not read",
  policy: "the pool's policy counts no times that a pair's could be compared with",
};

/** The pair that serves a decision; `undefined` when it runs whole. */
export function chosenPair({ pair }: Decision): PairCandidate | undefined {
  return pair?.form === "pair" ? pair.candidates[0] : undefined;
}

/** Which form was chosen, why, and by how much, as the text beside `form`; `undefined` when the pool has no pairs. */
export function formText(decision: Decision): string | undefined {
  const { pair } = decision;
  if (pair === undefined) return undefined;
  const chosen = chosenPair(decision);
  const what =
    chosen === undefined
      ? `whole on ${decision.workerId === "" ? "nobody" : decision.workerId}`
      : `pair ${chosen.prefillWorkerId} → ${chosen.decodeWorkerId} through ${pair.relays.join(", ")}`;
  return `${what}: ${reasons[pair.why] ?? pair.why}${marginText(decision, pair)}`;
}

/** How either form keeps the time between tokens that was asked for; `undefined` when none was, or nothing was compared. */
export function itlText({ pair }: Decision): string | undefined {
  if (pair === undefined || pair.itlTargetMs === 0) return undefined;
  const { itlTargetMs, pairItlMs, wholeItlMs, wholeItlCostMs, candidates } = pair;
  const pairCostMs = candidates[0]?.terms.find(({ name }) => name === "itl")?.ms ?? 0;
  const form = (name: string, itlMs: number, costMs: number): string =>
    `${name} ${formatMs(itlMs)}${costMs > 0 ? ` (${formatMs(costMs)} for missing it)` : ""}`;
  const expected = [
    ...(pairItlMs > 0 ? [form("pair", pairItlMs, pairCostMs)] : []),
    ...(wholeItlMs > 0 ? [form("whole", wholeItlMs, wholeItlCostMs)] : []),
  ];
  return `${formatMs(itlTargetMs)} asked${expected.length === 0 ? "" : `; ${expected.join(", ")}`}`;
}

/** Whether a stream goes on elsewhere when its engine dies; `undefined` when that was not asked. */
export function guardText({ guard }: Decision): string | undefined {
  if (guard === undefined) return undefined;
  if (guard.off !== "") return `off: ${guard.off}`;
  return guard.relays.length === 0 ? "on" : `on, by ${guard.relays.join(", ")}`;
}

/** By how much the forms differ, where both have a cost. */
function marginText(
  { candidates }: Decision,
  { form, candidates: pairs, marginMs }: PairChoice,
): string {
  const [whole] = candidates;
  const [best] = pairs;
  if (whole === undefined || best === undefined) return "";
  const other = form === "pair" ? "whole" : "the best pair";
  const word = marginMs < 0 ? "more" : "less";
  const costs = form === "pair" ? [best.costMs, whole.costMs] : [whole.costMs, best.costMs];
  const [own = 0, others = 0] = costs;
  return `; ${formatMs(own)} is ${formatMs(Math.abs(marginMs))} ${word} than ${other}, ${formatMs(others)}`;
}

/** The best pairs with every term; nothing when there were none. */
export function pairLines(decision: Decision): string[] {
  const { pair } = decision;
  if (pair === undefined || pair.candidates.length === 0) return [];
  const chosen = chosenPair(decision);
  const names = pair.candidates[0]?.terms.map(({ name }) => name) ?? [];
  const costs: Column[] = [
    { title: "" },
    { title: "pair" },
    { title: "cost", align: "right" },
    ...names.map((name): Column => ({ title: name.replaceAll("_", " "), align: "right" })),
    { title: "predicted TTFT", align: "right" },
  ];
  const nameOf = (one: PairCandidate): string => `${one.prefillWorkerId} → ${one.decodeWorkerId}`;
  const mark = (one: PairCandidate): string => (one === chosen ? "→" : "");
  const costRows = pair.candidates.map((one) => [
    mark(one),
    nameOf(one),
    formatMs(one.costMs),
    ...one.terms.map(({ ms }) => formatMs(ms)),
    formatMs(one.predictedTtftMs),
  ]);
  const facts: Column[] = [
    { title: "" },
    { title: "pair" },
    { title: "cached at prefill", align: "right" },
    { title: "at decode", align: "right" },
    { title: "KV to move", align: "right" },
  ];
  const factRows = pair.candidates.map((one) => [
    mark(one),
    nameOf(one),
    `${formatCount(one.prefillMatchedTokens)} tokens`,
    `${formatCount(one.decodeMatchedTokens)} tokens`,
    `${formatCount(Number(one.transferBytes))} bytes`,
  ]);
  return [...textTable(costs, costRows), "", ...textTable(facts, factRows), ""];
}
