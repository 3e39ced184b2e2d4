import { MeshError } from "../../shared/core/errors.ts";
import { toMeshError } from "../../shared/edge/wire.ts";

/** A failure in the shape and with the types that vLLM's OpenAI server uses (0.32.0). */
export class VllmError extends Error {
  readonly status: number;
  readonly type: string;
  readonly param: string | null;

  constructor(status: number, type: string, message: string, param: string | null = null) {
    super(message);
    this.name = "VllmError";
    this.status = status;
    this.type = type;
    this.param = param;
  }

  /** `flat`: the error object itself, as SGLang and TensorRT-LLM answer, instead of `{"error": …}`. */
  body(flat = false): string {
    const error = {
      message: this.message,
      type: this.type,
      param: this.param,
      code: this.status,
    };
    return JSON.stringify(flat ? { object: "error", ...error } : { error });
  }
}

/** 400 for a value that the engine refuses; `value` appears in the message as vLLM writes it. */
export function badRequest(
  message: string,
  param: string | null = null,
  value?: string | number,
): VllmError {
  const shown = value === undefined ? "" : `, value=${String(value)}`;
  const suffix = param === null ? "" : ` (parameter=${param}${shown})`;
  return new VllmError(400, "BadRequestError", `${message}${suffix}`, param);
}

/** 400 for a body that fails validation; `kind` and `text` follow pydantic's. */
export function invalidBody(field: string, kind: string, text: string, input: unknown): VllmError {
  const shown = typeof input === "string" ? `'${input}'` : JSON.stringify(input);
  return new VllmError(
    400,
    "Bad Request",
    `1 validation error:\n  {'type': '${kind}', 'loc': 'body.${field}', 'msg': '${text}', 'input': ${shown}}`,
    `body.${field}`,
  );
}

/** 404 for a model that is not served. */
export function modelNotFound(model: string, served: readonly string[]): VllmError {
  return new VllmError(
    404,
    "NotFoundError",
    `The model \`${model}\` does not exist. Valid aliases: ${served.join(", ")}.`,
    "model",
  );
}

/** 400 for a prompt that does not fit. */
export function promptTooLong(contextTokensMax: number, promptTokens: number): VllmError {
  return badRequest(
    `This model's maximum context length is ${String(contextTokensMax)} tokens. However, your prompt contains ` +
      `${String(promptTokens)} input tokens, which exceeds this limit even without any output tokens. ` +
      "Please reduce the length of the input prompt.",
    "input_tokens",
    promptTokens,
  );
}

/** 503 of the admission control; means "try another worker". */
export function queueFull(queuedRequestsMax: number): VllmError {
  return new VllmError(
    503,
    "Service Unavailable",
    `The engine has reached its limit of ${String(queuedRequestsMax)} queued requests. Please try again later.`,
  );
}

/** Any thrown value as an answer; what is no known failure becomes a 500. */
export function toVllmError(error: unknown): VllmError {
  if (error instanceof VllmError) return error;
  const known = error instanceof MeshError ? error : toMeshError(error);
  switch (known.code) {
    case "invalid_request":
    case "context_length_exceeded":
    case "already_exists":
      return badRequest(known.message, known.field ?? null);
    default:
      return new VllmError(500, "InternalServerError", known.message);
  }
}
