import type { MeshError } from "../../../shared/core/errors.ts";
import { openAiError, wire } from "../../../shared/edge/wire.ts";
import type { HeaderField } from "../../core/request/forwarded-headers.ts";
import { wholeAsStream } from "../../core/request/whole-as-stream.ts";
import type { ClientAnswer } from "../client-exchange.ts";
import type { OpenRequest } from "./open-request.ts";

const eventEnd = Buffer.from("\n\n");

/** Writes a request's answer to its client. */
export class ClientWriter {
  readonly #answer: ClientAnswer;
  readonly #open: OpenRequest;
  #isAtEventEnd = true;

  constructor(answer: ClientAnswer, open: OpenRequest) {
    this.#answer = answer;
    this.#open = open;
  }

  /** Sends status and fields; of a stream also whether it is guarded. */
  head(status: number, fields: readonly HeaderField[], guard: string): void {
    const own: HeaderField[] = this.#open.body.stream ? [["x-kvmesh-guard", guard]] : [];
    this.#answer.head(status, [...fields, ...own]);
  }

  /** Sends bytes that end where they end; false when the client is behind. */
  write(bytes: Uint8Array): boolean {
    const { length } = bytes;
    this.#isAtEventEnd = length >= 2 && bytes[length - 1] === 0x0a && bytes[length - 2] === 0x0a;
    this.#open.parts.metrics.clientBytes.inc(length);
    return this.#answer.write(bytes);
  }

  /** Ends a complete answer. */
  end(): void {
    this.#answer.end();
  }

  /** Cuts the connection. */
  destroy(): void {
    this.#answer.destroy();
  }

  /** The whole answer at once, which the prefill leg made. */
  whole(bytes: Uint8Array): void {
    const { body } = this.#open;
    if (!body.stream) {
      this.#answer.head(200, [
        ["content-type", "application/json"],
        ["content-length", String(bytes.length)],
      ]);
      this.#answer.write(bytes);
    } else {
      const options = body.object.value("stream_options");
      const withUsage =
        typeof options === "object" &&
        options !== null &&
        "include_usage" in options &&
        options.include_usage === true;
      this.#answer.head(200, [["content-type", "text/event-stream; charset=utf-8"]]);
      this.#answer.write(wholeAsStream(body.kind, bytes, withUsage));
    }
    this.#answer.end();
  }

  /** Nothing was answered yet: an error is the answer. */
  fail(error: MeshError): void {
    sendError(this.#answer, error);
  }

  /** Tells a client inside a stream that it breaks off; of a whole answer it sees the broken connection. */
  break(error: MeshError): void {
    if (!this.#open.body.stream) {
      this.#answer.destroy();
      return;
    }
    if (!this.#isAtEventEnd) this.#answer.write(eventEnd);
    this.#answer.write(Buffer.from(`data: ${openAiError(error).body}\n\n`));
    this.#answer.end();
  }
}

/** Answers with an error in the OpenAI shape. */
export function sendError(answer: ClientAnswer, error: MeshError): void {
  const { status, body } = openAiError(error);
  const bytes = Buffer.from(body);
  const fields: HeaderField[] = [
    ["content-type", "application/json"],
    ["content-length", String(bytes.length)],
  ];
  const retryAfterMs = error.retryAfterMs ?? (wire[error.code].retry === "after_delay" ? 1_000 : 0);
  if (retryAfterMs > 0) {
    fields.push(["retry-after", String(Math.ceil(retryAfterMs / 1_000))]);
    fields.push(["retry-after-ms", String(Math.ceil(retryAfterMs))]);
  }
  answer.head(status, fields);
  answer.write(bytes);
  answer.end();
}
