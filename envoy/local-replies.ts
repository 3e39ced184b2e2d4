import { extension, type Config } from "./extension.ts";

/** One row: which answers of Envoy's own it shapes, and the error they become. */
interface LocalReply {
  readonly status: number;
  readonly code: string;
  readonly type: string;
  readonly message: string;
  readonly retryAfterSeconds?: number;
}

const invalid = "invalid_request_error";
const unavailable = "service_unavailable_error";

/** Answers that Envoy makes itself, in the OpenAI error shape. `%RESPONSE_CODE_DETAILS%` is Envoy's reason, one word. */
const localReplies: readonly LocalReply[] = [
  { status: 400, code: "invalid_request", type: invalid, message: "malformed HTTP request" },
  { status: 403, code: "invalid_request", type: invalid, message: "refused by the gateway" },
  { status: 404, code: "not_found", type: invalid, message: "there is nothing at this path" },
  { status: 408, code: "request_timeout", type: invalid, message: "the request came too slowly" },
  {
    status: 413,
    code: "request_too_large",
    type: invalid,
    message: "the body is larger than the gateway accepts",
  },
  {
    status: 426,
    code: "invalid_request",
    type: invalid,
    message: "this version of HTTP is not supported",
  },
  {
    status: 429,
    code: "overloaded",
    type: "rate_limit_error",
    message: "too many requests",
    retryAfterSeconds: 1,
  },
  {
    status: 431,
    code: "invalid_request",
    type: invalid,
    message: "the headers are larger than the gateway accepts",
  },
  { status: 500, code: "internal_error", type: "server_error", message: "the gateway failed" },
  {
    status: 502,
    code: "worker_lost",
    type: unavailable,
    message: "the engine's answer could not be read",
  },
  {
    status: 503,
    code: "no_ready_worker",
    type: unavailable,
    message: "no engine can take this request now",
    retryAfterSeconds: 1,
  },
  {
    status: 504,
    code: "deadline_exceeded",
    type: "timeout_error",
    message: "nothing answered in time",
  },
];

const accessLogFilter = "envoy.access_loggers.extension_filters.cel";

/**
 * Whether an answer was already made by a router or the guard, which write the error shape themselves, or is for a gRPC call,
 * whose message it becomes.
 */
const alreadyShaped =
  "('content-type' in response.headers && response.headers['content-type'].startsWith('application/json'))" +
  " || ('content-type' in request.headers && request.headers['content-type'].startsWith('application/grpc'))";

function mapper(reply: LocalReply): Config {
  const retry = reply.retryAfterSeconds;
  return {
    filter: {
      and_filter: {
        filters: [
          {
            status_code_filter: {
              comparison: {
                op: "EQ",
                value: { default_value: reply.status, runtime_key: "kvmesh.local_reply" },
              },
            },
          },
          {
            extension_filter: extension(
              accessLogFilter,
              "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
              { expression: `!(${alreadyShaped})` },
            ),
          },
        ],
      },
    },
    body_format_override: {
      json_format: {
        error: {
          message: `${reply.message} (%RESPONSE_CODE_DETAILS%)`,
          type: reply.type,
          param: null,
          code: reply.code,
        },
      },
      content_type: "application/json",
    },
    ...(retry === undefined
      ? {}
      : {
          headers_to_add: [
            {
              header: { key: "retry-after", value: retry.toString() },
              append_action: "ADD_IF_ABSENT",
            },
          ],
        }),
  };
}

/** Shapes the answers that Envoy makes itself and leaves those of routers and the guard as they are. */
export function localReplyConfig(): Config {
  return { mappers: localReplies.map(mapper) };
}
