const encoder = new TextEncoder();
const errorStarts = ['data: {"error"', 'data: {"object":"error"', "event: error"].map((text) =>
  encoder.encode(text),
);

function startsWith(bytes: Uint8Array, start: Uint8Array): boolean {
  if (bytes.length < start.length) return false;
  for (let i = 0; i < start.length; i++) if (bytes[i] !== start[i]) return false;
  return true;
}

/**
 * Whether a stream's first bytes are an error event. Engines answer 200 before they compute anything, so that a stream
 * that failed at once (KV that could not be pulled, an engine core that died) shows it only here.
 */
export function isErrorEvent(first: Uint8Array): boolean {
  return errorStarts.some((start) => startsWith(first, start));
}

/** Statuses with which an engine says that it cannot; any other one is its answer to the request. */
export function isEngineFailure(status: number): boolean {
  return status >= 500;
}
