import { type ClientReadableStream, type ServiceError, status, Metadata } from "@grpc/grpc-js";
import { MeshError, type MeshErrorCode } from "../../shared/core/errors.ts";
import { createChannelCredentials, createChannelOptions } from "../../shared/edge/grpc-client.ts";
import {
  RouterClient as RouterStub,
  type ExplainRequest,
  type ExplainResponse,
  type SetPolicyResponse,
  type WatchPlacementsResponse,
  type WatchTopologyResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";

/** Longest wait for an answer, ms. */
const answerMsMax = 3_000;

/** How a decision is named on the command line. */
export type DecisionKey =
  | { readonly kind: "last" }
  | { readonly kind: "decision"; readonly id: string }
  | { readonly kind: "request"; readonly id: string };

/** What is changed with a policy. */
export interface PolicyOptions {
  /** Whether admission holds nothing back. */
  readonly placeOnArrival: boolean;
  /** Whether requests may run as pairs of workers: auto, never or always; absent: as it is. */
  readonly disaggregation?: string;
}

/**
 * Client of the routers' control interface: any live one of the addresses answers. Calls fail with the router's own
 * error, or `worker_lost` naming every address when none can be reached.
 */
export class RouterClient {
  readonly #stubs: readonly { readonly address: string; readonly stub: RouterStub }[];

  constructor(addresses: readonly string[]) {
    this.#stubs = addresses.map((address) => ({
      address,
      stub: new RouterStub(address, createChannelCredentials(), createChannelOptions()),
    }));
  }

  /** Everything known of one decision. */
  async explain(
    key: DecisionKey,
    whatIfWeights: Readonly<Record<string, number>> = {},
  ): Promise<ExplainResponse> {
    const request: ExplainRequest = {
      key: wireKey(key),
      whatIfWeights: { ...whatIfWeights },
      localOnly: false,
    };
    return this.#any((stub) =>
      unary<ExplainResponse>((options, done) =>
        stub.explain(request, new Metadata(), options, done),
      ),
    );
  }

  /** Changes the policy of all pools on all routers, and what goes with it. */
  async setPolicy(policy: string, options: PolicyOptions): Promise<SetPolicyResponse> {
    const request = { pool: "", policy, propagate: true, ...options };
    return this.#any((stub) =>
      unary<SetPolicyResponse>((options, done) =>
        stub.setPolicy(request, new Metadata(), options, done),
      ),
    );
  }

  /** The topology as the first live router sees it now. */
  async topology(): Promise<WatchTopologyResponse> {
    return this.#any(async (stub) => firstOf(stub.watchTopology({ intervalMsMin: 0 })));
  }

  /** The topology as each router sees it now, by address; an error for each that does not answer. */
  async topologies(): Promise<ReadonlyMap<string, WatchTopologyResponse | MeshError>> {
    const entries = await Promise.all(
      this.#stubs.map(async ({ address, stub }) => {
        const seen = await firstOf(stub.watchTopology({ intervalMsMin: 0 })).catch(
          (error: unknown) => toError(error, address),
        );
        return [address, seen] as const;
      }),
    );
    return new Map(entries);
  }

  /** Topology after every change, until the signal; ends with an error when the router goes away. */
  async watchTopology(
    onMessage: (topology: WatchTopologyResponse) => void,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#any(async (stub) =>
      follow(stub.watchTopology({ intervalMsMin: 250 }), onMessage, signal),
    );
  }

  /** Decisions as they are made by one router each, of all routers, until the signal. */
  async watchPlacements(
    onMessage: (placement: WatchPlacementsResponse) => void,
    signal: AbortSignal,
  ): Promise<void> {
    await Promise.all(
      this.#stubs.map(async ({ stub }) =>
        follow(stub.watchPlacements({ maxPerSecond: 100 }), onMessage, signal),
      ),
    );
  }

  /** Closes all channels. */
  close(): void {
    for (const { stub } of this.#stubs) stub.close();
  }

  async #any<T>(call: (stub: RouterStub) => Promise<T>): Promise<T> {
    const failures: string[] = [];
    for (const { address, stub } of this.#stubs) {
      try {
        return await call(stub);
      } catch (error) {
        const failure = toError(error, address);
        if (failure.code !== "worker_lost" && failure.code !== "deadline_exceeded") throw failure;
        failures.push(failure.message);
      }
    }
    throw new MeshError(
      "worker_lost",
      failures.length === 0
        ? "no router is known: name one with --router host:port"
        : `no router answers: ${failures.join("; ")}`,
    );
  }
}

function wireKey(key: DecisionKey): ExplainRequest["key"] {
  switch (key.kind) {
    case "last":
      return { $case: "last", value: true };
    case "decision":
      return { $case: "decisionId", value: key.id };
    case "request":
      return { $case: "requestId", value: key.id };
  }
}

async function unary<T>(
  call: (
    options: { deadline: number },
    done: (error: ServiceError | null, response: T) => void,
  ) => unknown,
): Promise<T> {
  return new Promise((resolve, reject) => {
    call({ deadline: Date.now() + answerMsMax }, (error, response) => {
      if (error === null) resolve(response);
      else reject(error);
    });
  });
}

/** First message of a stream, which is then cancelled. */
async function firstOf<T>(stream: ClientReadableStream<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => {
      reject(new MeshError("deadline_exceeded", `no answer within ${answerMsMax} ms`));
      stream.cancel();
    }, answerMsMax);
    stream.once("data", (message: T) => {
      clearTimeout(late);
      resolve(message);
      stream.cancel();
    });
    // The cancel above ends the stream with an error that comes after the answer.
    stream.on("error", (error: Error) => {
      clearTimeout(late);
      reject(error);
    });
    stream.once("end", () => {
      clearTimeout(late);
      reject(new MeshError("worker_lost", "the stream ended without a message"));
    });
  });
}

async function follow<T>(
  stream: ClientReadableStream<T>,
  onMessage: (message: T) => void,
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => stream.cancel();
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
    stream.on("data", onMessage);
    stream.on("error", (error: Error) => {
      signal.removeEventListener("abort", stop);
      if (signal.aborted) resolve();
      else reject(error);
    });
    stream.once("end", () => {
      signal.removeEventListener("abort", stop);
      resolve();
    });
  });
}

const codes: Partial<Record<status, MeshErrorCode>> = {
  [status.UNAVAILABLE]: "worker_lost",
  [status.DEADLINE_EXCEEDED]: "deadline_exceeded",
  [status.NOT_FOUND]: "not_found",
  [status.INVALID_ARGUMENT]: "invalid_request",
  [status.PERMISSION_DENIED]: "permission_denied",
  [status.UNAUTHENTICATED]: "unauthenticated",
  [status.CANCELLED]: "cancelled",
};

function toError(error: unknown, address: string): MeshError {
  if (error instanceof MeshError) return new MeshError(error.code, `${address}: ${error.message}`);
  const { code, details, message } = error as ServiceError;
  const known = codes[code] ?? "invariant_violated";
  const text = details === "" ? message : details;
  // grpc-js puts notes behind the reason that are mostly empty.
  const reason = text.replace(/\.? (?:Last error|Resolution note): *$/, "").trimEnd();
  return new MeshError(known, `router ${address}: ${reason}`, { cause: error });
}
