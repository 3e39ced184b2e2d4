import type { StreamState } from "./completion-stream.ts";

/**
 * Why a request failed. `http_<status>` is an answer other than 200; the rest:
 * connect: no connection · reset: lost before the answer began · timeout: no first token, or silence, past the limit ·
 * truncated: the stream ended without finish reason and `[DONE]` · stream_error: an error event inside the stream ·
 * bad_stream: not an OpenAI stream · wrong_answer: the check of the answer failed · overflow: not sent, because
 * the stated number of requests was already open · unfinished: still open when the run's last wait ended ·
 * stopped: the run was called off.
 */
export type RequestErrorKind =
  | "connect"
  | "reset"
  | `http_${number}`
  | "timeout"
  | "truncated"
  | "stream_error"
  | "bad_stream"
  | "wrong_answer"
  | "overflow"
  | "unfinished"
  | "stopped";

/** What is kept of one request. Times in ms from the start of the run; latencies count from `dueMs`. */
export interface RequestRecord {
  readonly index: number;
  readonly dueMs: number;
  /** How late the generator was. */
  readonly lateMs: number;
  readonly isWarmup: boolean;
  readonly error: RequestErrorKind | undefined;
  readonly errorDetail: string | undefined;
  readonly status: number | undefined;
  readonly ttftMs: number | undefined;
  /** (last − first token) / (tokens − 1); `undefined` for answers of one token. */
  readonly tpotMs: number | undefined;
  readonly endMs: number;
  readonly promptTokens: number | undefined;
  readonly cachedTokens: number | undefined;
  readonly outputTokens: number | undefined;
  /** Tokens asked for. */
  readonly outputTokensAsked: number;
  readonly chunkCount: number;
  /** Endpoint that served it, as a response header says; `undefined` without one. */
  readonly worker: string | undefined;
  /** Id of the routing decision, as a response header says. */
  readonly decision: string | undefined;
}

/** What the transport saw at the end of an exchange. */
export interface ExchangeEnd {
  readonly dueMs: number;
  readonly status: number | undefined;
  /** What broke the exchange off, where the transport or the caller did. */
  readonly failure: { readonly kind: RequestErrorKind; readonly detail: string } | undefined;
  /** Beginning of the body of an answer other than 200. */
  readonly errorBody: string;
  /** Verdict of the check of the answer: what is wrong, or `undefined`. */
  readonly answerProblem: string | undefined;
}

/** Error and latencies of one finished exchange. Deterministic: the same stream and end, the same outcome. */
export function judge(
  stream: StreamState,
  end: ExchangeEnd,
): Pick<RequestRecord, "error" | "errorDetail" | "ttftMs" | "tpotMs" | "outputTokens"> {
  const outputTokens =
    stream.usage?.completionTokens ?? (stream.chunkCount > 0 ? stream.chunkCount : undefined);
  const failed = failureOf(stream, end);
  const { firstTokenMs, lastTokenMs } = stream;
  const ttftMs = firstTokenMs === undefined ? undefined : firstTokenMs - end.dueMs;
  const tpotMs =
    firstTokenMs === undefined ||
    lastTokenMs === undefined ||
    outputTokens === undefined ||
    outputTokens < 2
      ? undefined
      : (lastTokenMs - firstTokenMs) / (outputTokens - 1);
  return { error: failed?.kind, errorDetail: failed?.detail, ttftMs, tpotMs, outputTokens };
}

function failureOf(
  stream: StreamState,
  end: ExchangeEnd,
): { kind: RequestErrorKind; detail: string } | undefined {
  if (stream.error !== undefined) return { kind: "stream_error", detail: stream.error };
  // Bytes after a complete answer are nobody's loss: a connection may well break behind [DONE].
  const isComplete = stream.isDone && stream.finishReason !== undefined;
  if (end.failure !== undefined && !isComplete) return end.failure;
  if (end.status !== undefined && end.status !== 200) {
    return { kind: `http_${end.status}`, detail: end.errorBody };
  }
  if (stream.malformed !== undefined) return { kind: "bad_stream", detail: stream.malformed };
  if (!isComplete) {
    const missing = stream.finishReason === undefined ? "a finish reason" : "[DONE]";
    return {
      kind: "truncated",
      detail: `ended after ${stream.chunkCount} chunks without ${missing}`,
    };
  }
  if (stream.firstTokenMs === undefined) {
    return { kind: "bad_stream", detail: "finished without any text or token" };
  }
  if (end.answerProblem !== undefined) {
    return { kind: "wrong_answer", detail: end.answerProblem };
  }
  return undefined;
}
