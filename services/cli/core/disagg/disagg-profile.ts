import { stepModels, type StepModel } from "../../../shared/core/step-model.ts";
import { demoModel } from "../demo-profile.ts";
import type { Settings } from "../mesh-plan.ts";
import type { DisaggFleet } from "./disagg-loads.ts";

/** Step times of the engines: H100 SXM, Llama-3.1-70B, tensor parallel over 4. */
const stepModelName = "h100_sxm/llama-3.1-70b/tp4";
const blockSizeTokens = 16;
/** KV of 16 tokens of that model in BF16: 80 layers, 8 heads of 128, keys and values. */
const blockBytesReal = 5_242_880;
/** A 400 Gbit/s network between hosts. */
const linkBytesPerSReal = 50_000_000_000;
const linkLatencyMs = 1;

/** How the demo of prefill/decode pairs is made small enough for one machine; printed with its results. */
export interface DisaggScale {
  /** By which bytes of a block and link speeds are divided. */
  readonly factor: number;
  readonly blockBytes: number;
  readonly linkBytesPerS: number;
  /** Sequences that an engine runs at once, so that two cores can carry the answers. */
  readonly runningMax: number;
}

/** Fleet of the demo of prefill/decode pairs. */
export interface DisaggProfile {
  readonly engines: readonly Settings[];
  readonly workerSettings: Settings;
  readonly routerSettings: Settings;
  readonly blockSizeTokens: number;
  readonly scale: DisaggScale;
  readonly fleet: DisaggFleet;
}

/** Role of a worker. */
export type DisaggRole = "both" | "prefill" | "decode";

/** Roles of the workers of a fleet in their order: so many take the first, the rest the second. */
function split(fleet: DisaggFleet, first: DisaggRole, rest: DisaggRole): DisaggRole[] {
  return Array.from({ length: fleet.engines }, (_, index) =>
    index < fleet.prefillEngines ? first : rest,
  );
}

/**
 * Roles of the workers in each mode. When every request is a pair, half of them compute prompts alone. Free choice may use every
 * engine for whole requests (of the role `decode` too, which computes prompts of its own), and the first half for the prompts of
 * others: somewhere prompts must be able to gather, since as long as each engine has some of all, no request alone gains by
 * going elsewhere.
 */
export function rolesOf(
  mode: "aggregated" | "disaggregated" | "free choice",
  fleet: DisaggFleet,
): DisaggRole[] {
  switch (mode) {
    case "aggregated":
      return split(fleet, "both", "both");
    case "disaggregated":
      return split(fleet, "prefill", "decode");
    case "free choice":
      return split(fleet, "both", "decode");
  }
}

/**
 * Four engines, half of which compute prompts when every request is a pair. Bytes of a block and speeds of links are divided by
 * the same factor, so that a transfer takes as long as it would. The KV capacity is what four 80 GB devices have left at 90 %
 * beside FP8 weights.
 */
export function disaggProfile(options: {
  readonly modelDir: string;
  readonly blockBytes: number;
}): DisaggProfile {
  const { modelDir, blockBytes } = options;
  const stepModel = stepModels[stepModelName] as StepModel;
  const factor = blockBytesReal / blockBytes;
  const linkBytesPerS = linkBytesPerSReal / factor;
  const kvTokens = 650_000;
  const runningMax = 16;
  const engine: Settings = {
    model: demoModel,
    stepModel: stepModelName,
    kvTokens,
    runningMax,
    blockSizeTokens,
    tokenizerDir: modelDir,
    hangMsMax: 200,
    kv: {
      enabled: true,
      bytesPerBlock: blockBytes,
      loadFailurePolicy: "recompute",
      link: { bytesPerS: linkBytesPerS, latencyMs: linkLatencyMs },
    },
  };
  const kvBytesPerToken = blockBytes / blockSizeTokens;
  return {
    engines: Array.from({ length: 4 }, () => engine),
    workerSettings: {
      engine: {
        modelDir,
        stepModel: stepModelName,
        runningRequestsMax: runningMax,
        kvTransfer: "NixlConnector",
        kvBytesPerToken,
      },
    },
    routerSettings: {
      // Forms that cannot carry the load are to make requests wait, not to move their streams about.
      stream: { guard: "off" },
      placement: { links: { sameHostMs: linkLatencyMs, sameHostBytesPerS: linkBytesPerS } },
    },
    blockSizeTokens,
    scale: { factor, blockBytes, linkBytesPerS, runningMax },
    fleet: {
      engines: 4,
      prefillEngines: 2,
      stepModel,
      runningMax,
      kvTokens,
      transferMsPerToken: (kvBytesPerToken / linkBytesPerS) * 1_000,
    },
  };
}
