import { isUtf8 } from "node:buffer";
import { randomFillSync } from "node:crypto";
import type { WorkerId } from "../../services/shared/core/ids.ts";
import type { Answer, ExchangeRequest } from "../../services/router/core/exchange/exchange.ts";
import { BodyReader } from "../../services/router/core/openai/body-reader.ts";
import type { TokenisedPrompt } from "../../services/router/core/prompt/read-prompt.ts";
import type { RouterCore } from "../../services/router/core/router-core.ts";
import { AdmissionTimer } from "../../services/router/edge/admission-timer.ts";
import { Decider, type DeciderDependencies } from "../../services/router/edge/decider.ts";
import { PromptReading } from "../../services/router/edge/prompt-reading.ts";
import type { RequestContext } from "../../services/router/edge/request-context.ts";
import type {
  RequestDecider,
  WaitingDecision,
} from "../../services/router/edge/request-decider.ts";

/** Steps of a decision that a process by itself can take, each with all before it. */
export const ladderSteps = ["transport", "scan", "tokens", "place", "decide"] as const;

/** One of `ladderSteps`. */
export type LadderStep = (typeof ladderSteps)[number];

/** Requests end so long after they were placed, ms. */
const servedMs = 50;
const waitMsMax = 10_000;

const constantAnswer: Answer = {
  kind: "route",
  setHeaders: [
    ["x-kvmesh-pool", "pool-default"],
    ["x-gateway-destination-endpoint", "127.0.0.1:8000"],
  ],
  removeHeaders: [],
  metadata: {},
};

/**
 * Takes requests as far as one step of the ladder, and gives them an answer of the usual size. What engines do happens in
 * the core itself: a prompt's blocks are held by the worker that got it, and its reservation ends after 50 ms.
 */
export class LadderDecider implements RequestDecider {
  readonly #step: LadderStep;
  readonly #d: DeciderDependencies;
  readonly #bodies = new BodyReader({ key: randomFillSync(new Int32Array(8)), isUtf8 });
  readonly #reading: PromptReading;

  constructor(step: LadderStep, dependencies: DeciderDependencies) {
    this.#step = step;
    this.#d = dependencies;
    this.#reading = new PromptReading(dependencies);
  }

  decide(
    request: ExchangeRequest,
    context: RequestContext,
    answer: (answer: Answer) => void,
  ): WaitingDecision | undefined {
    if (this.#step === "transport") {
      answer(constantAnswer);
      return undefined;
    }
    const [first] = request.body;
    const body =
      request.body.length === 1 && first !== undefined ? first : Buffer.concat(request.body);
    const type = request.headers.get("content-type");
    const openAi = this.#bodies.read(context.path, body, type);
    if (this.#step === "scan") {
      answer(constantAnswer);
      return undefined;
    }
    const { runtimes, core, defaultPool } = this.#d;
    const runtime = runtimes.get(defaultPool);
    const asked = {
      openAi,
      bodyBytes: request.bodyBytes,
      runtime,
      contextMax: core.contextMax(defaultPool),
    };
    const read = this.#reading.read(asked, () => {
      const copy = new Uint8Array(body);
      return {
        bytes: copy.length,
        reread: () => this.#bodies.read(context.path, copy, type),
      };
    });
    const goOn = (prompt: TokenisedPrompt): void => {
      if (prompt.loadOnly !== undefined)
        throw new Error(`a prompt was not read: ${prompt.loadOnly}`);
      if (this.#step === "place") this.#place(prompt, context.requestId);
      answer(constantAnswer);
    };
    if (!("read" in read)) {
      goOn(read);
      return undefined;
    }
    void read.read.then(goOn);
    return {
      waitMsMax,
      cancel: () => {
        read.cancel();
      },
    };
  }

  #place(prompt: TokenisedPrompt, requestId: string): void {
    const { core, clock, defaultPool } = this.#d;
    const decision = core.place(
      {
        requestId,
        pool: defaultPool,
        model: "",
        promptTokens: prompt.tokens,
        hashes: prompt.hashes,
        tokensMax: 256,
        answer: "stream",
        loadOnlyReason: "",
        subset: undefined,
        dryRun: true,
        unixUs: clock.wallUnixUs(),
      },
      clock.now(),
    );
    holdBlocks(core, decision.workerId, prompt.hashes);
  }
}

function holdBlocks(core: RouterCore, worker: WorkerId | undefined, hashes: Uint32Array): void {
  const slot = worker === undefined ? undefined : core.members.get(worker)?.slot;
  if (slot !== undefined) core.index.store(slot, hashes);
}

/** The decider of a step; that of the last is a router's own. */
export function createLadderDecider(
  step: LadderStep,
  dependencies: Omit<DeciderDependencies, "onDecision" | "onWaiting">,
): RequestDecider {
  const { core, clock } = dependencies;
  const nothing = (): void => undefined;
  if (step !== "decide") {
    return new LadderDecider(step, { ...dependencies, onDecision: nothing, onWaiting: nothing });
  }
  const timer = new AdmissionTimer(core, clock);
  const settle = (): void => {
    timer.run();
    core.takeEffects();
  };
  const placeInTurn = core.placeInTurn.bind(core);
  core.placeInTurn = (request, now) =>
    placeInTurn(
      {
        ...request,
        decided: (decision) => {
          request.decided(decision);
          holdBlocks(core, decision.workerId, request.input.hashes);
          setTimeout(() => {
            core.release(decision.id, clock.now());
            settle();
          }, servedMs);
        },
      },
      now,
    );
  return new Decider({ ...dependencies, onDecision: settle, onWaiting: settle });
}
