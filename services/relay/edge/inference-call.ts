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
import type { GrpcStream } from "../../shared/edge/h2/grpc-stream.ts";
import { toMeshError } from "../../shared/edge/wire.ts";
import type { GenerateRequest } from "../../shared/gen/kvmesh/inference/v1/inference.ts";
import { generateBody, type GenerateAsk } from "../core/inference/generate-body.ts";
import type { HeaderField } from "../core/request/forwarded-headers.ts";
import { placeFields } from "../core/request/place-fields.ts";
import { readResume, resumeHeader } from "../core/resume/resume-token.ts";
import { BodyCharge, type BodyMemory } from "./body-memory.ts";
import type { ClientRequest } from "./client-exchange.ts";
import type { RequestTaker } from "./http1-server.ts";
import { endWithError, InferenceAnswer } from "./inference-answer.ts";
import type { Placer } from "./placer.ts";

const requestIdPattern = /^[\x21-\x7e]{1,128}$/;
/** Metadata of the call that goes on with the request. */
const forwarded = ["traceparent", "tracestate"];

/** What calls of Inference need of their relay. */
export interface InferenceParts {
  readonly taker: RequestTaker;
  readonly placer: () => Placer;
  readonly placeMs: number;
  readonly placementKeys: readonly TokenKey[];
  readonly resumeKeys: readonly TokenKey[];
  readonly memory: BodyMemory;
  readonly bufferBytesMax: number;
  readonly clock: Clock;
  /** Tells the router of a placement that is not used. */
  abandon(placement: Placement): void;
}

/** One call of Generate or Resume: from the message to a request like any other, whose answer it streams. */
export class InferenceCall {
  readonly #parts: InferenceParts;
  readonly #stream: GrpcStream;
  readonly #request: GenerateRequest;
  readonly #resumeToken: string | undefined;
  readonly #open: Map<string, InferenceCall>;
  readonly #arrivedAt: number;
  /** Aborted when nobody waits for a placement any more. */
  readonly #placing = new AbortController();
  readonly #charge: BodyCharge;
  #answer: InferenceAnswer | undefined;
  /** Whether the call is over for its caller. */
  #isGone = false;

  /** `open`: all calls by the id of their request, this one among them while it is open. */
  constructor(
    parts: InferenceParts,
    stream: GrpcStream,
    options: {
      readonly request: GenerateRequest;
      readonly resumeToken: string | undefined;
      readonly open: Map<string, InferenceCall>;
    },
  ) {
    this.#parts = parts;
    this.#stream = stream;
    this.#request = options.request;
    this.#resumeToken = options.resumeToken;
    this.#open = options.open;
    this.#arrivedAt = parts.clock.now();
    this.#charge = new BodyCharge(parts.memory);
  }

  /** Runs the request until its answer is under way, or ends the call with what is wrong. Never rejects but for a bug. */
  async run(): Promise<void> {
    let requestId = "";
    try {
      requestId = this.#nameOf();
      this.#parts.taker.requireRoom();
      this.#open.set(requestId, this);
      await this.#place(requestId);
    } catch (error) {
      this.#over(requestId);
      const mesh = toMeshError(error);
      if (mesh.code === "invariant_violated") throw error;
      if (!this.#isGone) this.#refuse(mesh);
    }
  }

  onDrain(): void {
    this.#answer?.listener?.onDrain();
  }

  /** The call is over; `isAnswered`: from this side. */
  closed(isAnswered: boolean): void {
    this.#isGone = true;
    this.#placing.abort();
    if (!isAnswered) this.#answer?.left();
  }

  /** Ends the request because its caller said so on another call. */
  cancel(): void {
    if (this.#answer !== undefined) {
      this.#answer.cancel();
      return;
    }
    this.#isGone = true;
    this.#placing.abort();
    this.#refuse(new MeshError("cancelled", "cancelled by Inference/Cancel"));
  }

  async #place(requestId: string): Promise<void> {
    const { placer, placementKeys, clock } = this.#parts;
    const { path, json } = generateBody(askOf(this.#request));
    const body = Buffer.from(json);
    const refusal = this.#charge.take(body.length);
    if (refusal !== undefined) throw this.#parts.taker.bodyError(refusal);
    const placed = await placer().place(
      {
        requestId,
        path,
        body,
        fields: placeFields({
          tenant: this.#tenant,
          traceparent: this.#stream.header("traceparent"),
          header: (name) => this.#hint(name),
        }),
        excluded: [],
        timeoutMs: Math.min(this.#parts.placeMs, this.#timeLeftMs()),
      },
      this.#placing.signal,
    );
    if (placed.kind === "refused") {
      // Nothing was lost yet: without a router nobody can say where the request could go.
      const code = placed.outcome === "refused" ? placed.code : "no_ready_worker";
      const { retryAfterMs } = placed;
      throw new MeshError(code, placed.message, retryAfterMs === undefined ? {} : { retryAfterMs });
    }
    const reading = readPlacement(placed.token, placementKeys, clock.wallUnixUs() / 1_000);
    if (reading.kind === "refused") throw new MeshError("no_ready_worker", reading.message);
    const { placement } = reading;
    try {
      if (this.#isGone) throw new MeshError("cancelled", "the caller left");
      this.#requireTime(placement.forecast.ttftMs);
    } catch (error) {
      this.#parts.abandon(placement);
      throw error;
    }
    this.#begin(requestId, { path, body, token: placed.token, placement });
  }

  #begin(
    requestId: string,
    what: {
      readonly path: string;
      readonly body: Uint8Array;
      readonly token: string;
      readonly placement: Placement;
    },
  ): void {
    const { taker, resumeKeys, bufferBytesMax, clock } = this.#parts;
    const { path, body, token, placement } = what;
    const resumeToken = this.#resumeToken;
    const resume =
      resumeToken === undefined
        ? undefined
        : readResume(resumeToken, resumeKeys, clock.wallUnixUs() / 1_000);
    const answer = new InferenceAnswer(this.#stream, {
      requestId,
      decisionId: placement.decisionId,
      tenant: this.#tenant,
      isResume: resumeToken !== undefined,
      bufferBytesMax,
      fromIndex: typeof resume === "object" ? resume.point.index : 0,
      resumeToken: resumeToken ?? "",
      onEnd: () => {
        if (this.#open.get(requestId) === this) this.#open.delete(requestId);
      },
    });
    this.#answer = answer;
    const fields = this.#fieldsOf(requestId, token);
    const client: ClientRequest = {
      method: "POST",
      path,
      body,
      // The router was asked meanwhile, for which the caller waited too.
      arrivedAt: this.#arrivedAt,
      header: (name) => fields.find(([field]) => field === name)?.[1],
      fields: () => fields,
      bodyDone: () => {
        this.#charge.giveBack();
      },
      over: (hasBegun) => {
        this.#charge.giveBack();
        if (!hasBegun) this.#parts.abandon(placement);
      },
    };
    taker.take(client, answer);
  }

  /** Header fields of the request that the call stands for. */
  #fieldsOf(requestId: string, token: string): HeaderField[] {
    const fields: HeaderField[] = [
      ["content-type", "application/json"],
      ["x-request-id", requestId],
      [placementHeader, token],
    ];
    const resumeToken = this.#resumeToken;
    if (resumeToken !== undefined) fields.push([resumeHeader, resumeToken]);
    for (const name of forwarded) {
      const value = this.#stream.header(name);
      if (value !== undefined) fields.push([name, value]);
    }
    const hints = placeFields({ tenant: "", header: (name) => this.#hint(name) });
    return [...fields, ...hints];
  }

  get #tenant(): string {
    const { tenant } = this.#request;
    return tenant === "" ? (this.#stream.header("x-kvmesh-tenant") ?? "") : tenant;
  }

  /** What the caller says of the request's class and targets: in the message, else in the call's metadata. */
  #hint(name: string): string | undefined {
    const { priority, session } = this.#request;
    if (name === "x-kvmesh-priority" && priority !== "") return priority;
    if (name === "x-kvmesh-session" && session !== "") return session;
    return this.#stream.header(name);
  }

  #nameOf(): string {
    const { requestId } = this.#request;
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

  /** Time until the caller's deadline, ms; infinite without one. */
  #timeLeftMs(): number {
    const timeout = this.#stream.header("grpc-timeout");
    const timeoutMs = timeout === undefined ? undefined : parseGrpcTimeout(timeout);
    if (timeoutMs === undefined) return Infinity;
    return Math.max(1, timeoutMs - (this.#parts.clock.now() - this.#arrivedAt));
  }

  /** A request whose first token cannot come in time is shed before an engine works on it. */
  #requireTime(ttftMs: number): void {
    const leftMs = this.#timeLeftMs();
    if (ttftMs <= leftMs) return;
    throw new MeshError(
      "deadline_exceeded",
      `first token expected in ${ttftMs.toFixed(0)} ms, ${leftMs.toFixed(0)} ms are left`,
    );
  }

  #refuse(error: MeshError): void {
    endWithError(this.#stream, error, {
      hasTokens: false,
      resumeToken: this.#resumeToken ?? "",
      tenant: this.#tenant,
    });
  }

  #over(requestId: string): void {
    this.#charge.giveBack();
    if (this.#open.get(requestId) === this) this.#open.delete(requestId);
  }
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
