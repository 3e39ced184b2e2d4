import { randomUUID } from "node:crypto";
import { isIP } from "node:net";
import { Metadata, status, type ClientReadableStream, type ServiceError } from "@grpc/grpc-js";
import { parseEndpoint } from "../core/endpoint.ts";
import { MeshError } from "../core/errors.ts";
import {
  InferenceClient as InferenceStub,
  type CancelResponse,
  type Finished,
  type GenerateRequest,
  type GenerateResponse,
  type ResumeResponse,
  type Started,
  type Tokens,
} from "../gen/kvmesh/inference/v1/inference.ts";
import { createChannelCredentials, createChannelOptions } from "./grpc-client.ts";
import { InferenceError, readInferenceError } from "./inference-error.ts";
import { inferenceServiceConfig } from "./inference-service-config.ts";

/** Longest request when the caller sets no limit, ms. */
const timeoutMsDefault = 600_000;
/** Longest wait for Cancel, ms: engines are told within 200 ms. */
const cancelMsMax = 1_000;

/** How one request runs. */
export interface GenerateOptions {
  /** Deadline of the whole request from now, ms; default 10 minutes. The relay sheds early what cannot meet it. */
  readonly timeoutMs?: number;
  /** Ends the request at the relay (Cancel) and the call. */
  readonly signal?: AbortSignal;
  /** Goes on with a stream that broke, with the same request, instead of beginning anew. */
  readonly resumeToken?: string;
  /** How often a stream that breaks is gone on with; default 3. */
  readonly resumesMax?: number;
  /** The request is placed, first or again. */
  readonly onStarted?: (started: Started) => void;
  /** Some tokens; the next ones are read when it has resolved. */
  readonly onTokens: (tokens: Tokens) => void | Promise<void>;
}

/** A complete answer. */
export interface Generated extends Finished {
  readonly requestId: string;
  /** How often the stream broke and went on. */
  readonly resumes: number;
}

/**
 * Client of `kvmesh.inference.v1.Inference`. It takes the addresses of relays, or of an Envoy before them; which retries are made
 * is in `inferenceServiceConfig`. A stream that breaks behind its first token is resumed, on whatever relay answers, as long as its
 * last tokens came with a resume token; indices are checked, so that what is handed on has no gap and no repetition.
 * Failures are `InferenceError`s. One instance is for any number of requests; `close` it.
 */
export class InferenceCaller {
  readonly #stub: InferenceStub;

  /**
   * Throws `invalid_request` for addresses that are not host:port, or several that are not all IP addresses. Without `retries` every
   * failure is handed on at once.
   */
  constructor(addresses: readonly string[], options: { readonly retries?: boolean } = {}) {
    this.#stub = new InferenceStub(targetOf(addresses), createChannelCredentials(), {
      ...createChannelOptions(),
      "grpc.enable_retries": options.retries === false ? 0 : 1,
      "grpc.service_config": JSON.stringify(inferenceServiceConfig),
      "grpc.service_config_disable_resolution": 1,
    });
  }

  /** Runs a request; resolves with its end. Its id is made up when it has none. */
  async generate(asked: GenerateRequest, options: GenerateOptions): Promise<Generated> {
    const request = asked.requestId === "" ? { ...asked, requestId: randomUUID() } : asked;
    const run = new GenerateRun(this.#stub, request, options);
    return run.run();
  }

  /** Ends a request by its id; whether the relay that answered had it open. */
  async cancel(requestId: string): Promise<boolean> {
    return cancel(this.#stub, requestId);
  }

  close(): void {
    this.#stub.close();
  }
}

/** One request with the calls that it takes. */
class GenerateRun {
  readonly #stub: InferenceStub;
  readonly #request: GenerateRequest;
  readonly #options: GenerateOptions;
  readonly #deadline: number;
  /** Index that the next tokens must have; undefined until the first are there. */
  #next: number | undefined;
  #resumeToken: string;
  #resumes = 0;

  constructor(stub: InferenceStub, request: GenerateRequest, options: GenerateOptions) {
    this.#stub = stub;
    this.#request = request;
    this.#options = options;
    this.#resumeToken = options.resumeToken ?? "";
    this.#deadline = Date.now() + (options.timeoutMs ?? timeoutMsDefault);
  }

  async run(): Promise<Generated> {
    const { requestId } = this.#request;
    for (;;) {
      try {
        const finished = await this.#call();
        return { ...finished, requestId, resumes: this.#resumes };
      } catch (error) {
        const failed = this.#read(error);
        if (!this.#mayResume(failed)) throw failed;
        this.#resumes++;
      }
    }
  }

  #read(error: unknown): InferenceError {
    if (error instanceof InferenceError) return error;
    if (!isServiceError(error)) throw error;
    return readInferenceError(error, {
      requestId: this.#request.requestId,
      resumeToken: this.#resumeToken,
    });
  }

  /** A stream may go on that broke after tokens of this run; what failed before is for the retries of the channel. */
  #mayResume(error: InferenceError): boolean {
    if (this.#options.signal?.aborted === true || Date.now() >= this.#deadline) return false;
    if (this.#next === undefined || error.resumeToken === "") return false;
    if (this.#resumes >= (this.#options.resumesMax ?? 3)) return false;
    this.#resumeToken = error.resumeToken;
    // Nobody here cancelled it, and the relay gives a reason where somebody did elsewhere: the connection was ended.
    const isCutOff = error.status === status.CANCELLED && error.reason === "";
    return isCutOff || brokenBy.has(error.status);
  }

  async #call(): Promise<Finished> {
    const { signal } = this.#options;
    if (signal?.aborted === true) throw this.#error(status.CANCELLED, "cancelled before it began");
    const call = this.#begin();
    // The loop below hears of errors as long as it runs; what comes later is nobody's.
    call.on("error", () => undefined);
    const stop = (): void => {
      void cancel(this.#stub, this.#request.requestId)
        .catch(() => undefined)
        .finally(() => {
          call.cancel();
        });
    };
    signal?.addEventListener("abort", stop, { once: true });
    let finished: Finished | undefined;
    try {
      for await (const message of call) {
        finished = await this.#take(messageOf(message as GenerateResponse | ResumeResponse));
      }
    } catch (error) {
      // An answer that is complete is not lost by what happens behind it.
      if (finished === undefined) throw error;
    } finally {
      signal?.removeEventListener("abort", stop);
      // After the end this changes nothing; after a failure of ours it ends the call.
      call.cancel();
    }
    if (finished !== undefined) return finished;
    throw this.#error(status.INTERNAL, "the stream ended without its last message");
  }

  #begin(): ClientReadableStream<GenerateResponse> | ClientReadableStream<ResumeResponse> {
    const options = { deadline: this.#deadline };
    if (this.#resumeToken === "" || (this.#next === undefined && !this.#isContinued)) {
      return this.#stub.generate(this.#request, new Metadata(), options);
    }
    const request = { resumeToken: this.#resumeToken, request: this.#request };
    return this.#stub.resume(request, new Metadata(), options);
  }

  /** Whether the caller itself goes on with an earlier stream. */
  get #isContinued(): boolean {
    return (this.#options.resumeToken ?? "") !== "";
  }

  async #take(response: GenerateResponse | undefined): Promise<Finished | undefined> {
    const message = response?.message;
    switch (message?.$case) {
      case "started":
        this.#options.onStarted?.(message.value);
        return undefined;
      case "tokens": {
        const { index, count, resumeToken } = message.value;
        if (this.#next !== undefined && index !== this.#next) {
          const text = `tokens from index ${String(index)} came where ${String(this.#next)} is due`;
          throw this.#error(status.INTERNAL, text);
        }
        this.#next = index + count;
        this.#resumeToken = resumeToken;
        await this.#options.onTokens(message.value);
        return undefined;
      }
      case "finished":
        return message.value;
      case undefined:
        throw this.#error(status.INTERNAL, "a message says nothing that this client knows");
    }
  }

  #error(code: status, message: string): InferenceError {
    return new InferenceError({ status: code, message, requestId: this.#request.requestId });
  }
}

/** Statuses of a stream that broke, as against one that was ended. */
const brokenBy: ReadonlySet<status> = new Set([
  status.ABORTED,
  status.UNAVAILABLE,
  status.INTERNAL,
  status.UNKNOWN,
]);

function messageOf(message: GenerateResponse | ResumeResponse): GenerateResponse | undefined {
  return "message" in message ? message : message.generated;
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}

function cancel(stub: InferenceStub, requestId: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + cancelMsMax };
    stub.cancel({ requestId }, new Metadata(), options, (error, answer?: CancelResponse) => {
      if (error === null) resolve(answer?.wasOpen === true);
      else reject(readInferenceError(error, { requestId, resumeToken: "" }));
    });
  });
}

/** The gRPC target of some addresses: one as it is, several as a list of IP addresses. */
function targetOf(addresses: readonly string[]): string {
  const [first] = addresses;
  if (first === undefined) throw new MeshError("invalid_request", "no address of a relay is given");
  const hosts = addresses.map((address) => {
    const host = parseEndpoint(address)?.host;
    if (host !== undefined) return host;
    throw new MeshError("invalid_request", `${address} is not host:port, such as 127.0.0.1:9100`);
  });
  if (addresses.length === 1) return first;
  const version = isIP(hosts[0] ?? "");
  if (version === 0 || hosts.some((host) => isIP(host) !== version)) {
    throw new MeshError(
      "invalid_request",
      `several addresses must all be IP addresses of one version: ${addresses.join(", ")}`,
    );
  }
  return `ipv${String(version)}:${addresses.join(",")}`;
}
