/** A header field; names in lower case. */
export type HeaderField = readonly [name: string, value: string];

/** Fields of one connection, or about the body as it was sent, which an engine must not see (RFC 9110 §7.6.1). */
const connectionFields: ReadonlySet<string> = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "proxy-authenticate",
  "proxy-authorization",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "host",
  "content-length",
  "expect",
  // Answers are read, so they must come as they are.
  "accept-encoding",
]);

/** Fields by which the mesh speaks to itself, and those that pin ranks or prefill hosts at engines. */
const ownPrefixes = ["x-kvmesh-", "x-gateway-", "x-prefiller-", "x-envoy-", "x-data-parallel-"];

/** Fields of the trace that each leg gets anew. */
const traceFields: ReadonlySet<string> = new Set(["traceparent", "tracestate"]);

/** Whether a field of a client's request goes on to engines. */
export function isForwarded(name: string): boolean {
  if (name.startsWith(":") || connectionFields.has(name) || traceFields.has(name)) return false;
  return !ownPrefixes.some((prefix) => name.startsWith(prefix));
}

/** Whether a field of an engine's answer goes on to the client. */
export function isReturned(name: string): boolean {
  return !connectionFields.has(name) && !name.startsWith("x-kvmesh-");
}

/** What a request line and a header field may hold in HTTP/1.1 (RFC 9110 §5.5, §5.6.2; RFC 9112 §3.2). */
const sendablePath = /^\/[\x21-\xff]*$/;
const sendableName = /^[!#$%&'*+\-.^_`|~0-9a-zA-Z]+$/;
const sendableValue = /^[\t\x20-\x7e\x80-\xff]*$/;

/**
 * Says which part of a request cannot be sent on to an engine, which is asked in HTTP/1.1 whatever the client speaks;
 * nothing when all can. Fields that are not forwarded do not count.
 */
export function findUnsendable(path: string, fields: Iterable<HeaderField>): string | undefined {
  if (!sendablePath.test(path)) return "the path holds characters that no request line can carry";
  for (const [name, value] of fields) {
    if (!isForwarded(name)) continue;
    if (!sendableName.test(name)) return "a header's name is not a token (RFC 9110 §5.6.2)";
    if (!sendableValue.test(value)) {
      return `header ${name} holds characters above U+00FF or control characters`;
    }
  }
  return undefined;
}
