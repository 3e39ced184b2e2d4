import type { MeshErrorCode } from "../../../shared/core/errors.ts";
import type { DecisionPair } from "../placement/pairs/decision-pair.ts";
import type { PlaceInput } from "../placement/place-input.ts";
import type { Eligible, PlacementTable } from "../placement/placement-table.ts";
import type { PoolPolicies } from "../placement/pool-policies.ts";
import type { PolicyName } from "../placement/policy.ts";
import type { DecisionLog } from "./decision-log.ts";
import { DecisionRecord } from "./decision-record.ts";
import type { Decision, DecisionAdmission, DecisionOutcome } from "./decision.ts";

const placed: DecisionOutcome = { kind: "placed" };

/** Makes decisions with ids of their own: those that place a request, for the caller to fill in, and those that do not. */
export class DecisionMaker {
  readonly #prefix: string;
  readonly #log: DecisionLog;
  readonly #policies: PoolPolicies;
  readonly #table: PlacementTable;
  #count = 0;

  /** `prefix`: `<instance>.<epoch>`; ids start with it. */
  constructor(
    options: { readonly prefix: string },
    of: {
      readonly log: DecisionLog;
      readonly policies: PoolPolicies;
      readonly table: PlacementTable;
    },
  ) {
    this.#prefix = options.prefix;
    this.#log = of.log;
    this.#policies = of.policies;
    this.#table = of.table;
  }

  /** A decision to place a request, which is not in the log yet. */
  placed(input: PlaceInput, policy: PolicyName): DecisionRecord {
    return this.#create(input, policy, placed);
  }

  /** A refusal, so that it can be explained. */
  refused(
    input: PlaceInput,
    error: { readonly code: MeshErrorCode; readonly message: string },
    admission?: DecisionAdmission,
  ): Decision {
    const outcome = { kind: "refused", code: error.code, message: error.message } as const;
    const decision = this.#create(input, this.#policies.nameOf(input.pool), outcome);
    decision.admission = admission;
    this.#log.add(decision);
    return decision;
  }

  /** Says why no worker of the pool can take a request, nor two of them; `pair` is absent where the pool has none. */
  noWorker(input: PlaceInput, eligible: Eligible, pair: DecisionPair | undefined): Decision {
    const { filtered, filteredCounts, filteredLeftOut } = eligible;
    // A worker that is not ready now would take this prompt no more than the others.
    const contextMax = this.#table.contextMax(input.pool);
    const isTooLong =
      input.loadOnlyReason === "" && contextMax > 0 && input.promptTokens >= contextMax;
    const outcome: DecisionOutcome = isTooLong
      ? {
          kind: "refused",
          code: "context_length_exceeded",
          message:
            `the prompt has ${input.promptTokens} tokens; model ${input.model} takes fewer than ` +
            `${contextMax} with room for an answer`,
        }
      : {
          kind: "no_worker",
          code: "no_ready_worker",
          message:
            `no worker of pool ${input.pool} can take the request: ${describeFiltered(filteredCounts)}` +
            (pair === undefined ? "" : `; nor can a pair: ${pair.why}`),
        };
    const decision = this.#create(input, this.#policies.nameOf(input.pool), outcome);
    decision.filtered = filtered;
    decision.leftOut = filteredLeftOut;
    decision.pair = pair;
    this.#log.add(decision);
    return decision;
  }

  #create(input: PlaceInput, policy: PolicyName, outcome: DecisionOutcome): DecisionRecord {
    this.#count++;
    return new DecisionRecord(
      {
        id: `${this.#prefix}.${this.#count}`,
        requestId: input.requestId,
        decidedUnixUs: input.unixUs,
        pool: input.pool,
        model: input.model,
        answer: input.answer ?? "",
        policy,
        promptTokens: input.promptTokens,
        promptBlocks: input.hashes.length / 2,
        loadOnlyReason: input.loadOnlyReason,
      },
      outcome,
    );
  }
}

function describeFiltered(counts: ReadonlyMap<string, number>): string {
  if (counts.size === 0) return "it has no member";
  return [...counts].map(([reason, count]) => `${count} ${reason}`).join(", ");
}
