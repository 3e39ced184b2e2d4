import { Metadata, status, type ServiceError } from "@grpc/grpc-js";
import { createChannelCredentials, createChannelOptions } from "../../shared/edge/grpc-client.ts";
import { wire } from "../../shared/edge/wire.ts";
import type { MeshErrorCode } from "../../shared/core/errors.ts";
import {
  Outcome,
  RouterClient,
  type PlaceRequest,
  type PlaceResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { PlaceAnswer, PlaceAsk, Placer } from "./placer.ts";

const clientsMax = 64;

/** Whether a router named an error that is the request's; a router's own bug is a router that is no use. */
function isCode(text: string): text is MeshErrorCode {
  return Object.hasOwn(wire, text) && text !== "invariant_violated";
}

/** Asks routers with `Router.Place`, one after the other until one answers. */
export class RouterPlacer implements Placer {
  readonly #targets: () => readonly string[];
  readonly #clients = new Map<string, RouterClient>();

  /** `targets`: control ports of routers, those to ask first in front. */
  constructor(targets: () => readonly string[]) {
    this.#targets = targets;
  }

  async place(ask: PlaceAsk, signal: AbortSignal): Promise<PlaceAnswer> {
    const deadline = performance.now() + ask.timeoutMs;
    let last: PlaceAnswer = {
      kind: "refused",
      outcome: "no_router",
      code: "worker_lost",
      message: "no router is there to place the request again",
    };
    for (const target of this.#targets()) {
      const leftMs = deadline - performance.now();
      if (leftMs <= 0) break;
      if (signal.aborted) return refusal("cancelled", "cancelled", "nobody waits for it any more");
      const answer = await this.#ask(target, ask, leftMs, signal);
      if (answer.kind === "placed") return answer;
      if (answer.outcome === "refused" || answer.outcome === "cancelled") return answer;
      last = answer;
    }
    return last;
  }

  close(): void {
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  #ask(
    target: string,
    ask: PlaceAsk,
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<PlaceAnswer> {
    const request: PlaceRequest = {
      requestId: ask.requestId,
      prompt: {
        $case: "body",
        value: { path: ask.path, json: Buffer.from(ask.body) },
      },
      subset: [],
      dryRun: false,
      excludedWorkerIds: [...ask.excluded],
    };
    const metadata = new Metadata();
    for (const [name, value] of ask.fields) metadata.set(name, value);
    return new Promise((resolve) => {
      const call = this.#client(target).place(
        request,
        metadata,
        { deadline: Date.now() + timeoutMs },
        (error: ServiceError | null, response?: PlaceResponse) => {
          signal.removeEventListener("abort", leave);
          resolve(error === null ? readAnswer(response) : readFailure(error));
        },
      );
      const leave = (): void => {
        call.cancel();
      };
      signal.addEventListener("abort", leave, { once: true });
    });
  }

  #client(target: string): RouterClient {
    const known = this.#clients.get(target);
    if (known !== undefined) return known;
    if (this.#clients.size >= clientsMax) this.close();
    const client = new RouterClient(target, createChannelCredentials(), createChannelOptions());
    this.#clients.set(target, client);
    return client;
  }
}

type Refusal = Extract<PlaceAnswer, { kind: "refused" }>;

function refusal(outcome: Refusal["outcome"], code: MeshErrorCode, message: string): Refusal {
  return { kind: "refused", outcome, code, message };
}

function readAnswer(response: PlaceResponse | undefined): PlaceAnswer {
  const decision = response?.decision;
  if (response === undefined || decision?.outcome !== Outcome.OUTCOME_PLACED) {
    const code = decision?.errorCode ?? "";
    const message = decision?.errorMessage ?? "the router placed nothing";
    return refusal("refused", isCode(code) ? code : "no_ready_worker", message);
  }
  if (response.placement === "") {
    return refusal("refused", "worker_lost", "the router signs no placements for relays");
  }
  return { kind: "placed", token: response.placement };
}

function readFailure(error: ServiceError): PlaceAnswer {
  const textOf = (name: string): string => error.metadata.get(name)[0]?.toString() ?? "";
  if (error.code === status.CANCELLED) return refusal("cancelled", "cancelled", error.details);
  const code = textOf("kvmesh-error-code");
  if (isCode(code)) {
    const retryAfterMs = Number(textOf("grpc-retry-pushback-ms"));
    const refused = refusal("refused", code, error.details);
    return retryAfterMs > 0 ? { ...refused, retryAfterMs } : refused;
  }
  const outcome = error.code === status.DEADLINE_EXCEEDED ? "timeout" : "no_router";
  return refusal(outcome, "worker_lost", `no router placed the request again: ${error.details}`);
}
