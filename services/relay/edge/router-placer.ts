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

function isCode(text: string): text is MeshErrorCode {
  return Object.hasOwn(wire, text);
}

/** Asks routers with `Router.Place`, one after the other until one answers. */
export class RouterPlacer implements Placer {
  readonly #targets: () => readonly string[];
  readonly #clients = new Map<string, RouterClient>();

  /** `targets`: control ports of routers, those to ask first in front. */
  constructor(targets: () => readonly string[]) {
    this.#targets = targets;
  }

  async place(ask: PlaceAsk): Promise<PlaceAnswer> {
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
      const answer = await this.#ask(target, ask, leftMs);
      if (answer.kind === "placed" || answer.outcome === "refused") return answer;
      last = answer;
    }
    return last;
  }

  close(): void {
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  #ask(target: string, ask: PlaceAsk, timeoutMs: number): Promise<PlaceAnswer> {
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
    return new Promise((resolve) => {
      this.#client(target).place(
        request,
        new Metadata(),
        { deadline: Date.now() + timeoutMs },
        (error: ServiceError | null, response?: PlaceResponse) => {
          resolve(error === null ? readAnswer(response) : readFailure(error));
        },
      );
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

function refusal(
  outcome: "refused" | "no_router" | "timeout",
  code: MeshErrorCode,
  message: string,
): PlaceAnswer {
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
  const code = error.metadata.get("kvmesh-error-code")[0]?.toString() ?? "";
  if (isCode(code)) return refusal("refused", code, error.details);
  const outcome = error.code === status.DEADLINE_EXCEEDED ? "timeout" : "no_router";
  return refusal(outcome, "worker_lost", `no router placed the request again: ${error.details}`);
}
