import type {
  ExportTraceServiceRequest,
  ExportTraceServiceResponse,
} from "../../shared/gen/opentelemetry/proto/collector/trace/v1/trace_service.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type { SpanQueue } from "../core/span-queue.ts";
import type { consoleMetrics } from "../metrics.ts";
import { invalidSpan, toResource, toSpanRecord, type SpanLimits } from "./otlp-span.ts";
import { spanFacts } from "./span-facts.ts";

/** Largest span as JSON, UTF-16 units; a larger one is refused even when each of its values is within limits. */
const spanLengthMax = 262_144;

/** Takes decoded export requests from both transports. */
export interface Receiver {
  /**
   * Puts the spans into the queue. Never waits and never throws: what is invalid or finds the queue full is refused,
   * counted, and told to the sender as a partial success, which it must not send again.
   */
  accept(
    request: ExportTraceServiceRequest,
    transport: "grpc" | "http",
  ): ExportTraceServiceResponse;
}

/** Makes the receiver in front of a queue. */
export function createReceiver(options: {
  readonly queue: SpanQueue;
  readonly limits: SpanLimits;
  readonly metrics: Metrics<typeof consoleMetrics>;
}): Receiver {
  const { queue, limits, metrics } = options;
  return {
    accept(request, transport) {
      let received = 0;
      let full = 0;
      let invalid = 0;
      let firstProblem = "";
      const refuse = (problem: string): void => {
        invalid += 1;
        if (firstProblem === "") firstProblem = problem;
      };
      for (const { resource: process, scopeSpans } of request.resourceSpans) {
        const resource = toResource(process?.attributes ?? [], limits);
        for (const { scope, spans } of scopeSpans) {
          const from = { resource, scope: scope?.name ?? "" };
          received += spans.length;
          for (const span of spans) {
            const problem = invalidSpan(span);
            if (problem !== undefined) {
              refuse(problem);
              continue;
            }
            const record = toSpanRecord(span, from, limits);
            const json = JSON.stringify(record);
            if (json.length > spanLengthMax) {
              refuse(
                `a span must be at most ${spanLengthMax.toString()} bytes; got ${json.length.toString()}`,
              );
              continue;
            }
            const accepted = queue.offer({
              traceId: record.traceId,
              spanId: record.spanId,
              startUnixNs: span.startTimeUnixNano,
              endUnixNs: BigInt(record.endUnixNs),
              json,
              facts: spanFacts(record),
            });
            if (!accepted) full += 1;
          }
        }
      }
      if (received > 0) metrics.spansReceived.inc({ transport }, received);
      if (full > 0) metrics.spansDropped.inc({ reason: "queue_full" }, full);
      if (invalid > 0) metrics.spansDropped.inc({ reason: "invalid" }, invalid);
      metrics.queueSpans.set(queue.size);
      metrics.queueBytes.set(queue.bytes);
      if (full + invalid === 0) return { partialSuccess: undefined };
      const reasons = [
        full > 0 ? `queue full: ${full.toString()} spans not kept` : "",
        invalid > 0 ? `${invalid.toString()} invalid spans, first: ${firstProblem}` : "",
      ];
      return {
        partialSuccess: {
          rejectedSpans: BigInt(full + invalid),
          errorMessage: reasons.filter((reason) => reason !== "").join("; "),
        },
      };
    },
  };
}
