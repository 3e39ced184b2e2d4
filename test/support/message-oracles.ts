import {
  requestHeaderNames,
  type RequestHeaders,
} from "../../services/router/core/exchange/request-headers.ts";
import type { ExchangeEvent } from "../../services/router/core/exchange/exchange.ts";
import {
  readAccessRecord,
  type AccessRecord,
} from "../../services/router/edge/access-log/access-record.ts";
import { readSubset, toEvent } from "../../services/router/edge/ext-proc/generated-messages.ts";
import type { ReadRequest } from "../../services/router/edge/ext-proc/request-reader.ts";
import { StreamAccessLogsMessage } from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import { ProcessingRequest } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";

/** What a ProcessingRequest says to the generated decoder. Throws its error. */
export function requestByGeneratedCode(bytes: Uint8Array): ReadRequest {
  const request = ProcessingRequest.decode(bytes);
  return { event: toEvent(request), subset: readSubset(request.metadataContext) };
}

/** The records of a StreamAccessLogsMessage by the generated decoder. Throws its error. */
export function recordsByGeneratedCode(bytes: Uint8Array): readonly AccessRecord[] {
  const { logEntries } = StreamAccessLogsMessage.decode(bytes);
  return logEntries === undefined ? [] : logEntries.value.logEntry.map(readAccessRecord);
}

function listed(headers: RequestHeaders): Record<string, string | undefined> {
  return Object.fromEntries(requestHeaderNames.map((name) => [name, headers.get(name)]));
}

/** An event as plain values: listed headers only, bodies as text of their bytes. */
export function plainEvent(event: ExchangeEvent): unknown {
  if (event.kind === "request_headers") return { ...event, headers: listed(event.headers) };
  if (event.kind === "request_body") {
    return { ...event, body: Buffer.from(event.body).toString("base64") };
  }
  return event;
}

/** A read message as plain values. */
export function plainRequest({ event, subset }: ReadRequest): unknown {
  return { event: plainEvent(event), subset: subset === undefined ? undefined : [...subset] };
}

/** What a reader makes of bytes, or that it refuses them. */
export function outcome(read: () => unknown): unknown {
  try {
    return { read: read() };
  } catch {
    return "refused";
  }
}
