/** What a failed request says, as far as it is shown. */
export interface FailedRequest {
  /** Name of the gRPC status. */
  readonly statusName: string;
  readonly reason: string;
  readonly message: string;
  readonly retryAfterMs: number | undefined;
  readonly mayRetry: boolean;
  readonly quotas: readonly { readonly subject: string; readonly description: string }[];
  readonly resumeToken: string;
  readonly requestId: string;
}

/** A failure for people: what happened, whether and when to try again, and how to go on. */
export function failureLines(failed: FailedRequest): string[] {
  const { statusName, reason, message, retryAfterMs, mayRetry, quotas, resumeToken } = failed;
  const lines = [
    `kvmesh: ${[statusName, reason].filter((one) => one !== "").join(" ")}: ${message}`,
  ];
  for (const { subject, description } of quotas) {
    lines.push(`  over its limit: ${subject}${description === "" ? "" : ` (${description})`}`);
  }
  if (retryAfterMs !== undefined) {
    lines.push(`  trying again makes sense in ${(retryAfterMs / 1_000).toFixed(1)} s`);
  } else if (mayRetry) lines.push("  trying again may help");
  if (resumeToken !== "") {
    lines.push(`  the stream goes on with the same words and --resume ${resumeToken}`);
  }
  if (failed.requestId !== "") lines.push(`  request ${failed.requestId}`);
  return lines;
}

/** The same as a value for `--json`. */
export function failureJson(failed: FailedRequest): unknown {
  const { statusName: status, reason, message, retryAfterMs, mayRetry, quotas } = failed;
  return {
    status,
    reason,
    message,
    mayRetry,
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
    ...(quotas.length === 0 ? {} : { quotas }),
    ...(failed.resumeToken === "" ? {} : { resumeToken: failed.resumeToken }),
  };
}

/** A complete request. */
export interface FinishedRequest {
  readonly requestId: string;
  readonly decisionId: string;
  /** stop, length or other. */
  readonly finishReason: string;
  readonly usage: {
    readonly promptTokens: number;
    readonly cachedTokens: number;
    readonly completionTokens: number;
  };
  readonly guarded: boolean;
  readonly unguardedReason: string;
  readonly resumes: number;
  readonly ttftMs: number | undefined;
  readonly durationMs: number;
}

/** What an answer was and took, in two lines. */
export function finishedLines(done: FinishedRequest): string[] {
  const { usage, ttftMs, durationMs, resumes } = done;
  const guard = done.guarded
    ? "guarded"
    : `not guarded${done.unguardedReason === "" ? "" : ` (${done.unguardedReason})`}`;
  const first = ttftMs === undefined ? "" : `first after ${ttftMs.toFixed(0)} ms, `;
  const broke = resumes === 0 ? "" : `, went on ${String(resumes)} times after it broke`;
  return [
    `${String(usage.promptTokens)} tokens in (${String(usage.cachedTokens)} cached), ${String(usage.completionTokens)} out, ended by ${done.finishReason}; ${first}all in ${(durationMs / 1_000).toFixed(2)} s; ${guard}${broke}`,
    `request ${done.requestId}  decision ${done.decisionId}  (npx kvmesh explain ${done.decisionId})`,
  ];
}
