import { MeshError } from "../../shared/core/errors.ts";
import type { ExplainResponse } from "../../shared/gen/kvmesh/router/v1/router.ts";
import { explainJson, explainView } from "../core/explain-view.ts";
import { unknownName } from "../../shared/core/suggestion.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";
import type { DecisionKey, RouterClient } from "./router-client.ts";
import { connectRouters, type MeshAddress } from "./running-mesh.ts";

/** Options of `kvmesh explain`. */
export interface ExplainOptions extends MeshAddress {
  /** `term=weight`, several. */
  readonly whatIf?: readonly string[] | undefined;
  readonly json?: boolean | undefined;
}

/** Reads `last`, a decision id (`<instance>.<epoch>.<n>`) or a request id. */
export function decisionKey(which: string): DecisionKey {
  if (which === "last") return { kind: "last" };
  if (/^.+\.\d+\.\d+$/.test(which)) return { kind: "decision", id: which };
  return { kind: "request", id: which };
}

/** Reads `term=weight` pairs. Fails with `invalid_request`. */
export function readWeights(pairs: readonly string[]): Record<string, number> {
  const weights: Record<string, number> = {};
  for (const pair of pairs) {
    const match = /^([a-z][a-z0-9_-]*)=(.+)$/.exec(pair);
    const weight = Number(match?.[2]);
    if (match?.[1] === undefined || !Number.isFinite(weight) || weight < 0) {
      throw new MeshError(
        "invalid_request",
        `--what-if ${pair}: must be term=weight with a weight of at least 0, such as prefill=0`,
      );
    }
    weights[match[1]] = weight;
  }
  return weights;
}

/** `kvmesh explain <which>`: prints one decision with everything that led to it. */
export async function explainCommand(
  which: string,
  options: ExplainOptions,
  io: CommandIo,
): Promise<number> {
  const weights = readWeights(options.whatIf ?? []);
  const routers = connectRouters(options);
  try {
    const response = await explain(routers, which, weights);
    if (options.json === true) io.out(JSON.stringify(explainJson(response)));
    else for (const line of explainView(response)) io.out(line);
    return exitCodes.done;
  } finally {
    routers.close();
  }
}

async function explain(
  routers: RouterClient,
  which: string,
  weights: Readonly<Record<string, number>>,
): Promise<ExplainResponse> {
  try {
    return await routers.explain(decisionKey(which), weights);
  } catch (error) {
    if (!(error instanceof MeshError)) throw error;
    if (error.code === "invalid_request" && Object.keys(weights).length > 0) {
      // A weight for a term that does not exist: the decision's own terms tell what was meant.
      requireKnownTerms(await routers.explain(decisionKey(which)), Object.keys(weights));
    }
    throw error;
  }
}

function requireKnownTerms(response: ExplainResponse, wanted: readonly string[]): void {
  const terms = response.decision?.candidates.flatMap((one) => one.terms.map((term) => term.name));
  const known = [...new Set(terms ?? [])];
  if (known.length === 0) return;
  const unknown = wanted.find((name) => !known.includes(name));
  if (unknown !== undefined) {
    throw new MeshError("invalid_request", unknownName("cost term", unknown, known));
  }
}
