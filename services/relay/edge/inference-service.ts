import { randomUUID } from "node:crypto";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import type { Placement } from "../../shared/core/placement-token/placement.ts";
import {
  placementHeader,
  readPlacement,
  type TokenKey,
} from "../../shared/core/placement-token/placement-token.ts";
import { parseGrpcTimeout } from "../../shared/edge/h2/grpc-blocks.ts";
import type { GrpcHandler, GrpcMethod, GrpcStream } from "../../shared/edge/h2/grpc-stream.ts";
import { unaryMethod } from "../../shared/edge/h2/grpc-unary.ts";
import { toMeshError } from "../../shared/edge/wire.ts";
import {
  CancelRequest,
  CancelResponse,
  GenerateRequest,
  ResumeRequest,
} from "../../shared/gen/kvmesh/inference/v1/inference.ts";
import { generateBody, type GenerateAsk } from "../core/inference/generate-body.ts";
import type { HeaderField } from "../core/request/forwarded-headers.ts";
import { readResume, resumeHeader } from "../core/resume/resume-token.ts";
import type { ClientRequest } from "./client-exchange.ts";
import type { RequestTaker } from "./http1-server.ts";
import { endWithError, InferenceAnswer } from "./inference-answer.ts";
import type { Placer } from "./placer.ts";

const invalidArgument = 3;
const requestIdPattern = /^[\x21-\x7e]{1,128}$/;
const forwarded = ["traceparent", "tracestate"];

/** What the service needs. */
export interface InferenceServiceOptions {
  readonly taker: RequestTaker;
  readonly placer: () => Placer;
  readonly placeMs: number;
  readonly placementKeys: readonly TokenKey[];
  readonly resumeKeys: readonly TokenKey[];
  readonly bufferBytesMax: number;
  readonly clock: Clock;
  /** Tells the router of a placement that is not used. */
  abandon(placement: Placement): void;
}

function askOf(request: GenerateRequest): GenerateAsk {
  const { model, session, input, sampling } = request;
  const common = {
    model,
    session,
    sampling: sampling ?? { stop: [], stopTokenIds: [] },
  };
  switch (input?.$case) {
    case "text":
      return { ...common, input: { kind: "text", text: input.value } };
    case "messages":
      return { ...common, input: { kind: "messages", messages: input.value.messages } };
    case "tokenIds":
      return { ...common, input: { kind: "token_ids", ids: input.value.ids } };
    case undefined:
      throw new MeshError("invalid_request", "input: give text, messages or token_ids", {
        field: "input",
      });
  }
}

/** The methods of `kvmesh.inference.v1.Inference`: asks a router for a placement, and carries it out like any other. */
export function createInferenceMethods(
  options: InferenceServiceOptions,
): ReadonlyMap<string, GrpcMethod> {
  const service = new InferenceService(options);
  return new Map([
    [
      "/kvmesh.inference.v1.Inference/Generate",
      (stream: GrpcStream) =>
        service.call(stream, (bytes) => ({ request: GenerateRequest.decode(bytes) })),
    ],
    [
      "/kvmesh.inference.v1.Inference/Resume",
      (stream: GrpcStream) =>
        service.call(stream, (bytes) => {
          const { request, resumeToken } = ResumeRequest.decode(bytes);
          return { request, resumeToken };
        }),
    ],
    ["/kvmesh.inference.v1.Inference/Cancel", service.cancel],
  ]);
}

class InferenceService {
  readonly #options: InferenceServiceOptions;
  /** By request id; undefined while the request is being placed. */
  readonly #open = new Map<string, InferenceAnswer | undefined>();
  readonly cancel: GrpcMethod = unaryMethod((bytes) => {
    let requestId: string;
    try {
      ({ requestId } = CancelRequest.decode(bytes));
    } catch {
      return { status: invalidArgument, text: "the message is no CancelRequest" };
    }
    const answer = this.#open.get(requestId);
    answer?.cancel();
    return { message: CancelResponse.encode({ wasOpen: answer !== undefined }).finish() };
  });

  constructor(options: InferenceServiceOptions) {
    this.#options = options;
  }

  call(
    stream: GrpcStream,
    decode: (bytes: Uint8Array) => {
      readonly request: GenerateRequest | undefined;
      readonly resumeToken?: string;
    },
  ): GrpcHandler {
    const call = { answer: undefined as InferenceAnswer | undefined, isGone: false };
    let hasRequest = false;
    return {
      onMessage: (bytes) => {
        if (hasRequest) return;
        hasRequest = true;
        let asked: ReturnType<typeof decode>;
        try {
          asked = decode(bytes);
        } catch {
          stream.end(invalidArgument, "the message cannot be read");
          return;
        }
        void this.#run(stream, asked, call);
      },
      onHalfClose: () => {
        if (!hasRequest) stream.end(invalidArgument, "the call has no message");
      },
      onDrain: () => call.answer?.listener?.onDrain(),
      onClose: (how) => {
        call.isGone = true;
        if (how !== "ended") call.answer?.left();
      },
    };
  }

  async #run(
    stream: GrpcStream,
    asked: { readonly request: GenerateRequest | undefined; readonly resumeToken?: string },
    call: { answer: InferenceAnswer | undefined; readonly isGone: boolean },
  ): Promise<void> {
    const { placer, placeMs, placementKeys, resumeKeys, clock, taker } = this.#options;
    const arrivedAt = clock.now();
    let unused: Placement | undefined;
    let reserved: string | undefined;
    const state = { hasTokens: false, resumeToken: asked.resumeToken ?? "", tenant: "" };
    try {
      const { request } = asked;
      if (request === undefined) {
        throw new MeshError("invalid_request", "request: is required", { field: "request" });
      }
      state.tenant = request.tenant;
      const requestId = this.#nameOf(request);
      taker.requireRoom();
      this.#open.set(requestId, undefined);
      reserved = requestId;
      const { path, json } = generateBody(askOf(request));
      const body = Buffer.from(json);
      const placed = await placer().place({
        requestId,
        path,
        body,
        excluded: [],
        timeoutMs: placeMs,
      });
      if (placed.kind === "refused") {
        // Nothing was lost yet: without a router nobody can say where the request could go.
        const code = placed.outcome === "refused" ? placed.code : "no_ready_worker";
        throw new MeshError(code, placed.message);
      }
      const reading = readPlacement(placed.token, placementKeys, clock.wallUnixUs() / 1_000);
      if (reading.kind === "refused") throw new MeshError("no_ready_worker", reading.message);
      const { placement } = reading;
      unused = placement;
      if (call.isGone) {
        this.#options.abandon(placement);
        return;
      }
      this.#requireTime(stream, arrivedAt, placement.forecast.ttftMs);
      const resume =
        asked.resumeToken === undefined
          ? undefined
          : readResume(asked.resumeToken, resumeKeys, clock.wallUnixUs() / 1_000);
      const answer = new InferenceAnswer(stream, {
        requestId,
        decisionId: placement.decisionId,
        tenant: request.tenant,
        isResume: asked.resumeToken !== undefined,
        bufferBytesMax: this.#options.bufferBytesMax,
        fromIndex: typeof resume === "object" ? resume.point.index : 0,
        resumeToken: asked.resumeToken ?? "",
        onEnd: () => {
          if (this.#open.get(requestId) === answer) this.#open.delete(requestId);
        },
      });
      call.answer = answer;
      this.#open.set(requestId, answer);
      reserved = undefined;
      const fields: HeaderField[] = [
        ["content-type", "application/json"],
        ["x-request-id", requestId],
      ];
      for (const name of forwarded) {
        const value = stream.header(name);
        if (value !== undefined) fields.push([name, value]);
      }
      fields.push([placementHeader, placed.token]);
      if (asked.resumeToken !== undefined) fields.push([resumeHeader, asked.resumeToken]);
      const client: ClientRequest = {
        method: "POST",
        path,
        body,
        header: (name) => fields.find(([field]) => field === name)?.[1],
        fields: () => fields,
        over: (hasBegun) => {
          if (!hasBegun) this.#options.abandon(placement);
        },
      };
      unused = undefined;
      taker.take(client, answer);
    } catch (error) {
      const mesh = toMeshError(error);
      if (mesh.code === "invariant_violated") throw error;
      if (unused !== undefined) this.#options.abandon(unused);
      if (call.isGone) return;
      endWithError(stream, mesh, state);
    } finally {
      if (reserved !== undefined) this.#open.delete(reserved);
    }
  }

  #nameOf(request: GenerateRequest): string {
    const { requestId } = request;
    if (requestId === "") return randomUUID();
    if (!requestIdPattern.test(requestId)) {
      throw new MeshError("invalid_request", "request_id: 1 to 128 visible characters of ASCII", {
        field: "request_id",
      });
    }
    if (this.#open.has(requestId)) {
      throw new MeshError("already_exists", `request_id: ${requestId} is open on this relay`);
    }
    return requestId;
  }

  /** A request whose first token cannot come in time is shed before an engine works on it. */
  #requireTime(stream: GrpcStream, arrivedAt: number, ttftMs: number): void {
    const timeout = stream.header("grpc-timeout");
    const timeoutMs = timeout === undefined ? undefined : parseGrpcTimeout(timeout);
    if (timeoutMs === undefined) return;
    const leftMs = timeoutMs - (this.#options.clock.now() - arrivedAt);
    if (ttftMs <= leftMs) return;
    throw new MeshError(
      "deadline_exceeded",
      `first token expected in ${ttftMs.toFixed(0)} ms, ${leftMs.toFixed(0)} ms are left`,
    );
  }
}
