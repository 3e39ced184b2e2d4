import { hintHeaders } from "../admission/request-hints.ts";

/**
 * The request headers that the router looks at, in lower case. A reader of messages keeps these and passes over all
 * others, so a header that is not in this list cannot be asked for.
 */
export const requestHeaderNames = [
  ...hintHeaders.tenant,
  ...hintHeaders.priority,
  ...hintHeaders.ttft,
  ...hintHeaders.itl,
  ...hintHeaders.session,
  ":method",
  ":path",
  "content-encoding",
  "content-length",
  "content-type",
  "traceparent",
  "tracestate",
  "x-kvmesh-guard",
  "x-request-id",
] as const;

/** One of `requestHeaderNames`. */
export type RequestHeaderName = (typeof requestHeaderNames)[number];

/** The headers of one request. */
export interface RequestHeaders {
  /** Value of a header, bytes read as Latin-1; of several the last. `undefined` when it was not sent. */
  get(name: RequestHeaderName): string | undefined;
}

/** A request without headers. */
export const noHeaders: RequestHeaders = { get: () => undefined };
