/* The bytes of google.rpc.Status with ErrorInfo, RetryInfo, QuotaFailure and BadRequest (googleapis, error_details.proto). */

const encoder = new TextEncoder();

function varint(value: number): number[] {
  const out: number[] = [];
  let rest = value;
  while (rest >= 128) {
    out.push((rest % 128) | 128);
    rest = Math.floor(rest / 128);
  }
  out.push(rest);
  return out;
}

const bytesField = (field: number, bytes: readonly number[]): number[] => [
  (field << 3) | 2,
  ...varint(bytes.length),
  ...bytes,
];
const textField = (field: number, text: string): number[] =>
  text === "" ? [] : bytesField(field, [...encoder.encode(text)]);
const numberField = (field: number, value: number): number[] =>
  value === 0 ? [] : [field << 3, ...varint(value)];

const anyOf = (type: string, message: readonly number[]): number[] =>
  bytesField(3, [
    ...textField(1, `type.googleapis.com/google.rpc.${type}`),
    ...bytesField(2, message),
  ]);

/** What a caller is told beside status and message. */
export interface ErrorFacts {
  /** gRPC status code. */
  readonly status: number;
  readonly message: string;
  /** The mesh's own code of the error. */
  readonly reason: string;
  /** When trying again makes sense, ms; absent when it does not. */
  readonly retryAfterMs?: number;
  /** Who is over a limit; absent when nobody is. */
  readonly quotaSubject?: string;
  /** Field of the request that is wrong; absent when none is. */
  readonly field?: string;
  readonly metadata?: Readonly<Record<string, string>>;
}

/** The value of `grpc-status-details-bin` before it is written as base64. */
export function statusDetails(facts: ErrorFacts): Uint8Array {
  const { status, message, reason, retryAfterMs, quotaSubject, field, metadata = {} } = facts;
  const info = [
    ...textField(1, reason),
    ...textField(2, "kvmesh"),
    ...Object.entries(metadata).flatMap(([name, value]) =>
      bytesField(3, [...textField(1, name), ...textField(2, value)]),
    ),
  ];
  const out = [...numberField(1, status), ...textField(2, message), ...anyOf("ErrorInfo", info)];
  if (retryAfterMs !== undefined) {
    const seconds = Math.floor(retryAfterMs / 1_000);
    const nanos = Math.round((retryAfterMs - 1_000 * seconds) * 1_000_000);
    const delay = [...numberField(1, seconds), ...numberField(2, nanos)];
    out.push(...anyOf("RetryInfo", bytesField(1, delay)));
  }
  if (quotaSubject !== undefined) {
    const violation = [...textField(1, quotaSubject), ...textField(2, message)];
    out.push(...anyOf("QuotaFailure", bytesField(1, violation)));
  }
  if (field !== undefined) {
    const violation = [...textField(1, field), ...textField(2, message)];
    out.push(...anyOf("BadRequest", bytesField(1, violation)));
  }
  return Uint8Array.from(out);
}
