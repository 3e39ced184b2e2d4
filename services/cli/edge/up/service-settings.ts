import { execFile } from "node:child_process";
import { join } from "node:path";
import { ConfigError } from "../../../shared/edge/config.ts";
import type { MeshPlan, ProcessPlan, Settings } from "../../core/mesh-plan.ts";
import { entryPoints, packageRoot, serviceNode } from "./mesh.ts";
import type { SettingsLines } from "./settings-lines.ts";
import type { StateFolder } from "./state-folder.ts";

/** Longest time that one service may take to read its settings, ms. */
const readMsMax = 15_000;
/** Services asked at once. */
const askedAtOnce = 2;

/** One process whose settings a person had a hand in. */
interface Asked {
  readonly plan: ProcessPlan;
  /** Where in kvmesh.yaml its settings may stand, the nearest first. */
  readonly roots: readonly (readonly (string | number)[])[];
}

/**
 * Has each service read the settings that `plan` gives it, before anything starts, and throws `ConfigError` with every
 * problem at its line of kvmesh.yaml. Processes whose settings the plan alone decides are not asked; of workers with the
 * same settings one is.
 */
export async function checkServiceSettings(input: {
  readonly plan: MeshPlan;
  readonly sections: Readonly<Record<string, Settings>>;
  /** Keys of the `worker` section for one worker alone, in the order of the plan's workers. */
  readonly memberSettings: readonly Settings[];
  readonly lines: SettingsLines;
  readonly state: StateFolder;
}): Promise<void> {
  const asked = toAsk(input);
  const problems = new Set<string>();
  while (asked.length > 0) {
    const found = await Promise.all(
      asked.splice(0, askedAtOnce).map((one) => problemsOf(one, input.state, input.lines)),
    );
    for (const problem of found.flat()) problems.add(problem);
  }
  if (problems.size > 0) throw new ConfigError([...problems]);
}

function toAsk({
  plan,
  sections,
  memberSettings,
}: Parameters<typeof checkServiceSettings>[0]): Asked[] {
  const asked: Asked[] = [];
  for (const one of [plan.console, plan.routers[0], plan.relays[0], plan.engines[0]]) {
    if (one === undefined || Object.keys(sections[one.service] ?? {}).length === 0) continue;
    asked.push({ plan: one, roots: [[one.service]] });
  }
  const seen = new Set<string>();
  for (const [index, own] of memberSettings.entries()) {
    const worker = plan.workers[index];
    const key = JSON.stringify(own);
    if (worker === undefined || seen.has(key)) continue;
    seen.add(key);
    const isPlain = Object.keys(own).length + Object.keys(sections["worker"] ?? {}).length === 0;
    if (isPlain) continue;
    asked.push({ plan: worker, roots: [["mesh", "workers", index, "settings"], ["worker"]] });
  }
  return asked;
}

async function problemsOf(
  { plan, roots }: Asked,
  state: StateFolder,
  lines: SettingsLines,
): Promise<string[]> {
  const file = state.write(`config/${plan.name}.json`, { [plan.service]: plan.settings });
  const [main, ...words] = entryPoints[plan.service];
  const said = await saidBy([
    join(packageRoot, main),
    ...words,
    "--config",
    file,
    "--print-config",
  ]);
  return said.map((line) => atItsLine(line, plan.service, roots, lines));
}

/** What the service says of its settings on stderr; nothing when it takes them. */
async function saidBy(words: readonly string[]): Promise<string[]> {
  return new Promise((resolve) => {
    execFile(serviceNode, words, { timeout: readMsMax }, (error, _stdout, stderr) => {
      const text = stderr.trim();
      if (error === null) resolve([]);
      else resolve((text === "" ? error.message : text).split("\n"));
    });
  });
}

/** A service's message with the line of kvmesh.yaml for that of the file it was given. */
function atItsLine(
  message: string,
  service: string,
  roots: Asked["roots"],
  lines: SettingsLines,
): string {
  const match = /^(?<where>.*?): (?<path>[a-z]+(?:\.[\w-]+)*): (?<text>.*)$/u.exec(message);
  const groups = match?.groups;
  const path = groups?.["path"]?.split(".");
  if (groups === undefined || path?.[0] !== service) return message;
  const where = groups["where"] ?? "";
  const text = sayRequired(groups["text"] ?? "");
  if (where === "environment") return `${where}: ${path.join(".")}: ${text}`;
  const inner = path.slice(1).map((key) => (/^\d+$/.test(key) ? Number(key) : key));
  const root = roots.find((one) => lines.has([...one, ...inner])) ?? roots[0] ?? [service];
  const full = [...root, ...inner];
  return `${lines.where(full)}: ${full.join(".")}: ${text}`;
}

/** "must be a text" of a setting that is not there, as "is required". */
export function sayRequired(text: string): string {
  return text.startsWith("must be ") && !text.includes(", got ")
    ? `is required, ${text.slice("must be ".length)}`
    : text;
}
