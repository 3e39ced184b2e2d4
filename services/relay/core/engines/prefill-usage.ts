import type { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { scanField, type ScannedObject } from "../body/scanned-object.ts";
import type { PrefillUsage } from "./engine-adapter.ts";

function countOr(value: unknown, fallback: number): number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 ? value : fallback;
}

/** Usage of a whole answer in the OpenAI shape. */
export function readUsage(json: JsonScanner, answer: ScannedObject): PrefillUsage {
  const usage = scanField(json, answer, "usage");
  if (usage === undefined) return { promptTokens: -1, cachedTokens: -1 };
  const promptTokens = countOr(usage.value("prompt_tokens"), -1);
  const details = usage.value("prompt_tokens_details");
  const cached =
    typeof details === "object" && details !== null && "cached_tokens" in details
      ? details.cached_tokens
      : undefined;
  return { promptTokens, cachedTokens: countOr(cached, -1) };
}

/** Fields that make an answer one token long and whole: what a prefill leg is asked. */
export function oneTokenEdits(
  object: ScannedObject,
): { readonly name: string; readonly json: string }[] {
  const edits = [
    { name: "stream", json: "false" },
    { name: "max_tokens", json: "1" },
  ];
  for (const [name, json] of [
    ["max_completion_tokens", "1"],
    ["min_tokens", "0"],
    ["stream_options", "null"],
  ] as const) {
    if (object.find(name) !== undefined) edits.push({ name, json });
  }
  return edits;
}
