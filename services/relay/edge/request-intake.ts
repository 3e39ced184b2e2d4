import { MeshError } from "../../shared/core/errors.ts";
import type { Placement } from "../../shared/core/placement-token/placement.ts";
import { isPlacedBody } from "../../shared/core/placement-token/placement-token.ts";
import { toMeshError } from "../../shared/edge/wire.ts";
import type { RelayedBody } from "../core/body/relayed-body.ts";
import type { ResumedFrom } from "../core/guard/guarded-stream.ts";
import { restoreStream } from "../core/resume/mirror-state.ts";
import { readResume, resumeHeader } from "../core/resume/resume-token.ts";
import type { BodyRefusal } from "./body-memory.ts";
import type { ClientAnswer, ClientRequest } from "./client-exchange.ts";
import { admit } from "./exchange/admit.ts";
import { sendError } from "./exchange/client-writer.ts";
import { Exchange } from "./exchange/exchange.ts";
import { requireLive } from "./exchange/planning.ts";
import type { RequestTaker } from "./http1-server.ts";
import type { RelayParts } from "./relay-parts.ts";

/** A request that may begin. */
interface Admitted {
  readonly placement: Placement;
  readonly body: RelayedBody;
  readonly arrivedAt: number;
  readonly resumed?: ResumedFrom;
}

/** Takes requests in, refuses those that cannot begin, and knows the ones that are open. */
export class RequestIntake implements RequestTaker {
  readonly #parts: RelayParts;
  readonly #open = new Set<Exchange>();
  #isDraining = false;
  #onEmpty: (() => void) | undefined;

  constructor(parts: RelayParts) {
    this.#parts = parts;
  }

  /** Requests open now. */
  get size(): number {
    return this.#open.size;
  }

  /** Of them, guarded streams. */
  get guardedCount(): number {
    let count = 0;
    for (const { isGuarded } of this.#open) if (isGuarded) count++;
    return count;
  }

  /** Whether new requests are refused because this relay goes away. */
  get isDraining(): boolean {
    return this.#isDraining;
  }

  take(request: ClientRequest, answer: ClientAnswer): void {
    const arrivedAt = request.arrivedAt ?? this.#parts.clock.now();
    try {
      this.requireRoom();
      const admitted = admit(this.#parts, request);
      const resume = request.header(resumeHeader);
      if (resume === undefined) this.#begin(request, answer, { ...admitted, arrivedAt });
      else void this.#resume(request, answer, { ...admitted, arrivedAt }, resume);
    } catch (error) {
      this.#refuse(answer, error);
      request.over(false);
    }
  }

  requireRoom(): void {
    const { requestsMax } = this.#parts.config.limits;
    if (this.#isDraining) {
      throw new MeshError("no_ready_worker", "this relay is going away", { retryAfterMs: 100 });
    }
    if (this.#open.size >= requestsMax) {
      throw new MeshError(
        "overloaded",
        `${String(requestsMax)} requests are open (relay.limits.requestsMax)`,
        { retryAfterMs: 1_000 },
      );
    }
  }

  refuse(answer: ClientAnswer, reason: BodyRefusal): void {
    sendError(answer, this.bodyError(reason));
  }

  bodyError(reason: BodyRefusal): MeshError {
    const { metrics, config } = this.#parts;
    metrics.requests.inc({ mode: "none", outcome: "refused" });
    metrics.refusals.inc({ reason });
    if (reason === "body_memory") {
      return new MeshError("overloaded", "no memory for the body now", { retryAfterMs: 1_000 });
    }
    const max = String(config.limits.bodyBytesMax);
    return new MeshError(
      "request_too_large",
      `the body is longer than ${max} bytes (relay.limits.bodyBytesMax)`,
    );
  }

  /** Takes no more from now on. */
  drain(): void {
    this.#isDraining = true;
  }

  /** Resolves when no request is open. Called once. */
  empty(): Promise<void> {
    if (this.#open.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onEmpty = resolve;
    });
  }

  /** Ends every open request as if its client had left. */
  endAll(): void {
    for (const exchange of [...this.#open]) exchange.onGone();
  }

  /** Moves guarded streams off an engine. */
  leaveWorker(workerId: string): void {
    for (const exchange of [...this.#open]) exchange.leaveWorker(workerId);
  }

  /** Ends what takes too long; called a few times a second. */
  tick(now: number): void {
    for (const exchange of this.#open) exchange.tick(now);
  }

  #begin(request: ClientRequest, answer: ClientAnswer, what: Admitted): void {
    const exchange = new Exchange({
      parts: this.#parts,
      request,
      answer,
      ...what,
      onOver: (over) => {
        this.#open.delete(over);
        if (this.#open.size === 0) this.#onEmpty?.();
        request.over(true);
      },
    });
    this.#open.add(exchange);
    exchange.begin();
  }

  /** Goes on with a stream that another relay lost, once its buddy has handed it over. */
  async #resume(
    request: ClientRequest,
    answer: ClientAnswer,
    what: Admitted,
    token: string,
  ): Promise<void> {
    const { metrics, clock, resumeKeys, mirrors } = this.#parts;
    // What the exchange needs of the body may be gone when the buddy has answered.
    const body = request.body;
    const client = { isGone: false };
    answer.listener = {
      onDrain: () => undefined,
      onGone: () => {
        client.isGone = true;
      },
    };
    let putBack = (): void => undefined;
    try {
      const resume = readResume(token, resumeKeys, clock.wallUnixUs() / 1_000);
      if (typeof resume === "string") {
        throw resume === "expired"
          ? new MeshError("resume_lost", "the resume token is older than its stream is kept")
          : new MeshError("unauthenticated", `the resume token is not valid (${resume})`);
      }
      if (!isPlacedBody(what.placement, resume.bodySha256)) {
        throw new MeshError("invalid_request", "the resume token belongs to another body");
      }
      // The buddy hands a stream over once: nothing is asked for that could not be gone on with.
      requireLive(this.#parts, what.placement);
      const kept = await mirrors.take(resume);
      putBack = () => {
        mirrors.putBack(resume, kept);
      };
      const resumed = restoreStream(kept, resume);
      if (resumed === undefined) {
        throw new MeshError("resume_lost", "tokens of the stream are missing; send it anew");
      }
      if (client.isGone) {
        putBack();
        request.over(false);
        return;
      }
      const again: ClientRequest = {
        method: request.method,
        path: request.path,
        body,
        header: (name) => request.header(name),
        fields: () => request.fields(),
        bodyDone: () => {
          request.bodyDone();
        },
        over: (hasBegun) => {
          request.over(hasBegun);
        },
      };
      this.#begin(again, answer, { ...what, resumed });
      metrics.resumes.inc({ outcome: "continued" });
    } catch (error) {
      putBack();
      const { code } = toMeshError(error);
      metrics.resumes.inc({ outcome: code === "resume_lost" ? "lost" : "refused" });
      this.#refuse(answer, error);
      request.over(false);
    }
  }

  /** Answers a request that no leg is started for. A bug is not answered but stops the process. */
  #refuse(answer: ClientAnswer, error: unknown): void {
    const { metrics, log } = this.#parts;
    const mesh = toMeshError(error);
    if (mesh.code === "invariant_violated") throw error;
    metrics.requests.inc({ mode: "none", outcome: "refused" });
    if (mesh.code !== "unauthenticated") metrics.refusals.inc({ reason: mesh.code });
    log.debug({ event: "request_refused", code: mesh.code, reason: mesh.message }, "refused");
    sendError(answer, mesh);
  }
}
