import type { HeaderField } from "./forwarded-headers.ts";

/**
 * Headers by which a router knows a request's class, latency targets and conversation, in the spellings that it reads.
 * Each name stands for itself: the router prefers the first it knows, as it does with the client's own headers.
 */
const hintNames = [
  "x-kvmesh-priority",
  "x-llm-d-inference-objective",
  "x-gateway-inference-objective",
  "x-kvmesh-slo-ttft-ms",
  "x-llm-d-slo-ttft-ms",
  "x-slo-ttft-ms",
  "x-kvmesh-slo-itl-ms",
  "x-llm-d-slo-tpot-ms",
  "x-slo-tpot-ms",
  "x-kvmesh-session",
  "x-session-id",
  "session_id",
  "conversation_id",
];
const tenantName = "x-kvmesh-tenant";

/** What metadata of a call may hold: visible ASCII and blanks (gRPC over HTTP/2, "ASCII-Value"). */
const asciiValue = /^[\x20-\x7e]+$/;

/**
 * What a router must be told beside the body when a relay asks it for a placement, so that the request counts as the same
 * caller's and in the same class as the first time. Values that metadata cannot hold are left out.
 */
export function placeFields(request: {
  /** Tenant that the request was admitted for; empty for none. */
  readonly tenant: string;
  /** Trace to go on in; absent when there is none. */
  readonly traceparent?: string | undefined;
  header(name: string): string | undefined;
}): HeaderField[] {
  const fields: HeaderField[] = [];
  const add = (name: string, value: string | undefined): void => {
    if (value !== undefined && asciiValue.test(value)) fields.push([name, value]);
  };
  add(tenantName, request.tenant);
  for (const name of hintNames) add(name, request.header(name));
  add("traceparent", request.traceparent);
  return fields;
}
