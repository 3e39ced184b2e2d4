import type { Settings } from "./mesh-plan.ts";

/** What a workload says of the fleet that it is meant for. */
export interface WorkloadDefaults {
  readonly rateFactor: number;
  readonly workers: number;
  readonly kvTokensPerWorker: number;
}

/** Fleet of simulated engines for one workload. */
export interface DemoProfile {
  readonly engines: readonly Settings[];
  readonly workerSettings: Settings;
  readonly blockSizeTokens: number;
}

/** Name under which the demo's engines serve their model. */
export const demoModel = "qwen3-demo";

/** Policies that are compared when none are named, in the order of the printed table. */
export const demoPolicies = ["round-robin", "least-requests", "kv-blind", "kv"] as const;

/** Every policy that a router has, ours last. */
export const placementPolicies = [
  "round-robin",
  "random",
  "least-requests",
  "power-of-two",
  "session-hash",
  "prefix-trie",
  "dynamo",
  "llm-d",
  "aibrix-prefix",
  "smg",
  "kv-blind",
  "kv",
] as const;

/**
 * Engines as the workload wants them: its KV capacity, the calibrated times of one H100 with an 8B model, vLLM's
 * block of 16 tokens. Conversation is scored in mesh blocks of 32, so that engine blocks are grouped; the others in
 * blocks of 16, since the agentic stream is scaled to them.
 */
export function demoProfile(options: {
  readonly workload: string;
  readonly defaults: WorkloadDefaults;
  /** Number of engines; undefined takes the workload's. */
  readonly workers: number | undefined;
  /** Folder with tokenizer.json of the demo model. */
  readonly modelDir: string;
}): DemoProfile {
  const { workload, defaults, modelDir } = options;
  const count = options.workers ?? defaults.workers;
  const stepModel = "h100_sxm/llama-3.1-8b/tp1";
  const engine: Settings = {
    model: demoModel,
    stepModel,
    kvTokens: defaults.kvTokensPerWorker,
    blockSizeTokens: 16,
    tokenizerDir: modelDir,
    // A demo that ends has clients that are gone.
    hangMsMax: 200,
  };
  return {
    engines: Array.from({ length: count }, () => engine),
    workerSettings: { engine: { modelDir, stepModel } },
    blockSizeTokens: workload === "conversation" ? 32 : 16,
  };
}
