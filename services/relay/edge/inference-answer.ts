import { MeshError, type MeshErrorCode } from "../../shared/core/errors.ts";
import type { GrpcStream } from "../../shared/edge/h2/grpc-stream.ts";
import { wire } from "../../shared/edge/wire.ts";
import {
  FinishReason,
  GenerateResponse,
  ResumeResponse,
  type Usage,
} from "../../shared/gen/kvmesh/inference/v1/inference.ts";
import { AnswerReader, type AnswerEvent } from "../core/inference/answer-events.ts";
import { statusDetails } from "../core/inference/error-details.ts";
import type { HeaderField } from "../core/request/forwarded-headers.ts";
import type { AnswerListener, ClientAnswer } from "./client-exchange.ts";

const aborted = 10;
const errorBytesMax = 64 << 10;

/** Ends a call with a status that says all that is known of an error. */
export function endWithError(
  stream: GrpcStream,
  error: MeshError,
  state: { readonly hasTokens: boolean; readonly resumeToken: string; readonly tenant: string },
): void {
  const { retry, grpc } = wire[error.code];
  // After the first token nobody may try again as if nothing had been there.
  const status = state.hasTokens && retry !== "never" ? aborted : grpc;
  const mayRetry = retry !== "never" && !state.hasTokens;
  const usualMs = retry === "after_delay" ? 1_000 : 100;
  const retryAfterMs = mayRetry ? (error.retryAfterMs ?? usualMs) : undefined;
  const details = statusDetails({
    status,
    message: error.message,
    reason: error.code,
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
    ...(error.field === undefined ? {} : { field: error.field }),
    ...(error.code === "tenant_limited" ? { quotaSubject: `tenant:${state.tenant}` } : {}),
    ...(state.resumeToken === "" ? {} : { metadata: { resume_token: state.resumeToken } }),
  });
  stream.end(status, error.message, [
    ["kvmesh-error-code", error.code],
    // Below 0 says to clients that try again by themselves that they must not (gRPC A6).
    ["grpc-retry-pushback-ms", retryAfterMs === undefined ? "-1" : String(Math.ceil(retryAfterMs))],
    ["grpc-status-details-bin", Buffer.from(details).toString("base64").replace(/=+$/, "")],
  ]);
}

function isCode(text: string): text is MeshErrorCode {
  return Object.hasOwn(wire, text);
}

function reasonOf(reason: string): FinishReason {
  if (reason === "stop") return FinishReason.FINISH_REASON_STOP;
  return reason === "length" ? FinishReason.FINISH_REASON_LENGTH : FinishReason.FINISH_REASON_OTHER;
}

/** What an answer needs to know of its request. */
export interface InferenceAnswerOptions {
  readonly requestId: string;
  readonly decisionId: string;
  readonly tenant: string;
  readonly isResume: boolean;
  readonly bufferBytesMax: number;
  /** Index of the first token. */
  readonly fromIndex: number;
  /** Token that the stream was resumed with; empty for a new one. */
  readonly resumeToken: string;
  /** Told once when the request is over. */
  readonly onEnd: () => void;
}

/** Turns an answer in the OpenAI shape into messages of Generate or Resume. */
export class InferenceAnswer implements ClientAnswer {
  listener: AnswerListener | undefined;
  readonly #stream: GrpcStream;
  readonly #reader = new AnswerReader();
  readonly #options: InferenceAnswerOptions;
  #index: number;
  #status = 0;
  #errorBytes: Uint8Array[] = [];
  #errorSize = 0;
  #retryAfterMs: number | undefined;
  #resumeToken: string;
  #finish = "";
  #usage: Usage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  #isOver = false;

  constructor(stream: GrpcStream, options: InferenceAnswerOptions) {
    this.#stream = stream;
    this.#options = options;
    this.#index = options.fromIndex;
    this.#resumeToken = options.resumeToken;
  }

  head(status: number, fields: readonly HeaderField[]): void {
    this.#status = status;
    if (status !== 200) {
      const after = fields.find(([name]) => name === "retry-after-ms")?.[1];
      if (after !== undefined) this.#retryAfterMs = Number(after);
      return;
    }
    const guard = fields.find(([name]) => name === "x-kvmesh-guard")?.[1] ?? "";
    const { requestId, decisionId } = this.#options;
    this.#send({
      message: {
        $case: "started",
        value: {
          requestId,
          decisionId,
          guarded: guard === "on",
          unguardedReason: /reason=(.*)$/.exec(guard)?.[1] ?? "",
        },
      },
    });
  }

  write(bytes: Uint8Array): boolean {
    if (this.#status !== 200) {
      this.#errorSize += bytes.length;
      if (this.#errorSize <= errorBytesMax) this.#errorBytes.push(bytes.slice());
      return true;
    }
    for (const event of this.#reader.read(bytes)) this.#event(event);
    return this.#stream.queuedBytes <= this.#options.bufferBytesMax;
  }

  end(): void {
    if (this.#isOver) return;
    if (this.#status === 200) {
      this.#fail(new MeshError("worker_lost", "the stream ended without its end"));
      return;
    }
    let code: MeshErrorCode = "worker_lost";
    let message = `the engine answered ${String(this.#status)}`;
    try {
      const { error } = JSON.parse(Buffer.concat(this.#errorBytes).toString()) as {
        error?: { code?: unknown; message?: unknown };
      };
      if (typeof error?.message === "string") message = error.message;
      if (typeof error?.code === "string" && isCode(error.code)) code = error.code;
      else if (this.#status < 500) code = "invalid_request";
    } catch {
      // An engine's error need not be JSON; its status says enough.
    }
    const retryAfterMs = this.#retryAfterMs;
    this.#fail(new MeshError(code, message, retryAfterMs === undefined ? {} : { retryAfterMs }));
  }

  destroy(): void {
    if (!this.#isOver) this.#fail(new MeshError("worker_lost", "the answer broke off"));
  }

  /** The caller is gone, or its deadline has passed. */
  left(): void {
    if (this.#isOver) return;
    this.#over();
    this.listener?.onGone();
  }

  /** Ends the request because its caller said so on another call. */
  cancel(): void {
    if (this.#isOver) return;
    this.#over();
    this.listener?.onGone();
    endWithError(this.#stream, new MeshError("cancelled", "cancelled by Inference/Cancel"), {
      hasTokens: this.#index > 0,
      resumeToken: "",
      tenant: "",
    });
  }

  #event(event: AnswerEvent): void {
    if (this.#isOver) return;
    switch (event.kind) {
      case "tokens": {
        const count = event.ids.length === 0 ? 1 : event.ids.length;
        // Tokens without a name take the last one back: who went on from there would get them twice.
        this.#resumeToken = event.resumeToken;
        this.#send({
          message: {
            $case: "tokens",
            value: {
              index: this.#index,
              ids: [...event.ids],
              count,
              text: event.text,
              resumeToken: event.resumeToken,
            },
          },
        });
        this.#index += count;
        return;
      }
      case "finish":
        this.#finish = event.reason;
        return;
      case "usage": {
        const { promptTokens, cachedTokens, completionTokens } = event;
        this.#usage = { promptTokens, cachedTokens, completionTokens };
        return;
      }
      case "error":
        this.#fail(new MeshError(isCode(event.code) ? event.code : "worker_lost", event.message));
        return;
      case "done":
        this.#send({
          message: {
            $case: "finished",
            value: { reason: reasonOf(this.#finish), usage: this.#usage },
          },
        });
        this.#over();
        this.#stream.end();
        return;
    }
  }

  #send(response: GenerateResponse): void {
    const bytes = this.#options.isResume
      ? ResumeResponse.encode({ generated: response }).finish()
      : GenerateResponse.encode(response).finish();
    this.#stream.send(bytes);
  }

  #fail(error: MeshError): void {
    this.#over();
    endWithError(this.#stream, error, {
      hasTokens: this.#index > 0,
      resumeToken: this.#resumeToken,
      tenant: this.#options.tenant,
    });
  }

  #over(): void {
    this.#isOver = true;
    this.#options.onEnd();
  }
}
