import { MeshError } from "../../shared/core/errors.ts";
import type { GrpcHandler, GrpcMethod, GrpcStream } from "../../shared/edge/h2/grpc-stream.ts";
import {
  CancelRequest,
  CancelResponse,
  GenerateRequest,
  ResumeRequest,
} from "../../shared/gen/kvmesh/inference/v1/inference.ts";
import { endWithError } from "./inference-answer.ts";
import { InferenceCall, type InferenceParts } from "./inference-call.ts";

/** What a call of Generate or Resume asks. */
interface Asked {
  readonly request: GenerateRequest | undefined;
  /** Absent for a new request. */
  readonly resumeToken?: string;
}

/** The methods of `kvmesh.inference.v1.Inference`: asks a router for a placement, and carries it out like any other. */
export function createInferenceMethods(parts: InferenceParts): ReadonlyMap<string, GrpcMethod> {
  const service = new InferenceService(parts);
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
    ["/kvmesh.inference.v1.Inference/Cancel", (stream: GrpcStream) => service.cancel(stream)],
  ]);
}

function unreadable(what: string): MeshError {
  return new MeshError("invalid_request", `the message is no ${what}`);
}

class InferenceService {
  readonly #parts: InferenceParts;
  /** Calls by request id, those that are still being placed included. */
  readonly #open = new Map<string, InferenceCall>();

  constructor(parts: InferenceParts) {
    this.#parts = parts;
  }

  call(stream: GrpcStream, decode: (bytes: Uint8Array) => Asked): GrpcHandler {
    let call: InferenceCall | undefined;
    let hasMessage = false;
    const refuse = (error: MeshError): void => {
      endWithError(stream, error, { hasTokens: false, resumeToken: "", tenant: "" });
    };
    return {
      onMessage: (bytes) => {
        if (hasMessage) return;
        hasMessage = true;
        let asked: Asked;
        try {
          asked = decode(bytes);
        } catch {
          refuse(unreadable("request of this method"));
          return;
        }
        const { request, resumeToken } = asked;
        if (request === undefined) {
          refuse(new MeshError("invalid_request", "request: is required", { field: "request" }));
          return;
        }
        call = new InferenceCall(this.#parts, stream, { request, resumeToken, open: this.#open });
        void call.run();
      },
      onHalfClose: () => {
        if (!hasMessage) refuse(new MeshError("invalid_request", "the call has no message"));
      },
      onDrain: () => call?.onDrain(),
      onClose: (how) => {
        call?.closed(how === "ended");
      },
    };
  }

  /** Ends the request that the call names, wherever it is. */
  cancel(stream: GrpcStream): GrpcHandler {
    let asked: CancelRequest | undefined;
    return {
      onMessage: (bytes) => {
        try {
          asked ??= CancelRequest.decode(bytes);
        } catch {
          // Left undefined, which the end of the call answers.
        }
      },
      onHalfClose: () => {
        if (asked === undefined) {
          const state = { hasTokens: false, resumeToken: "", tenant: "" };
          endWithError(stream, unreadable("CancelRequest"), state);
          return;
        }
        const call = this.#open.get(asked.requestId);
        call?.cancel();
        stream.send(CancelResponse.encode({ wasOpen: call !== undefined }).finish());
        stream.end();
      },
      onClose: () => undefined,
    };
  }
}
