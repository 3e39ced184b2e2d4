import { attributes, spanNames } from "../../shared/core/trace-catalogue.ts";
import type { AttributeValue, SpanFacts, SpanRecord } from "../core/span-record.ts";

/** Envoy's tag with x-request-id on its server span. */
const envoyRequestId = "guid:x-request-id";
/** Longest id that is indexed; longer ones are not ids of ours. */
const idLengthMax = 200;

const text = (value: AttributeValue | undefined): string | undefined =>
  typeof value === "string" && value !== "" ? value : undefined;
const number = (value: AttributeValue | undefined): number | undefined =>
  typeof value === "number" ? value : undefined;

/** What may be the x-request-id inside a vLLM request id: `chatcmpl-<id>`, `cmpl-<id>-<choice>`. */
function insideEngineId(id: string): string[] {
  const bare = id.replace(/^(?:chatcmpl|cmpl)-/u, "");
  return [id, bare, bare.replace(/-\d{1,3}$/u, "")];
}

function requestIds(record: SpanRecord): string[] {
  const engineId = text(record.attributes[attributes.engineRequestId]);
  const ids = [
    text(record.attributes[attributes.requestId]),
    text(record.attributes[envoyRequestId]),
    ...(engineId === undefined ? [] : insideEngineId(engineId)),
  ];
  const known = ids.filter((id): id is string => id !== undefined && id.length <= idLengthMax);
  return [...new Set(known)];
}

/** What the list of traces shows and searches, taken from the attributes that the catalogue names. */
export function spanFacts(record: SpanRecord): SpanFacts {
  const { attributes: values, name } = record;
  const ofRoute = name === spanNames.route;
  const ofServe = name === spanNames.serve;
  const ownsDecision = ofRoute || ofServe;
  const decisionId = ownsDecision ? text(values[attributes.decisionId]) : undefined;
  return {
    decisionId:
      decisionId !== undefined && decisionId.length <= idLengthMax ? decisionId : undefined,
    requestIds: requestIds(record),
    model: ofRoute ? text(values[attributes.genAiRequestModel]) : undefined,
    outcome: ofRoute ? text(values[attributes.routeOutcome]) : undefined,
    workerId: ownsDecision ? text(values[attributes.workerId]) : undefined,
    ttftMs: ofServe ? number(values[attributes.observedTtftMs]) : undefined,
    predictedTtftMs: ownsDecision ? number(values[attributes.predictedTtftMs]) : undefined,
    durationMs: ofServe ? number(values[attributes.observedDurationMs]) : undefined,
    isRoute: ofRoute,
    failed: record.status.code === "error",
    rootName: record.parentSpanId === "" || name === spanNames.ingress ? name : undefined,
  };
}
