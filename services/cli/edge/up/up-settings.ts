import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parse } from "yaml";
import { ConfigError, resolveConfig, type LoadedConfig } from "../../../shared/edge/config.ts";
import { EnvoyConfig, MeshConfig, type MeshWorkerConfig } from "../../config.ts";
import type { PlannedService, Settings } from "../../core/mesh-plan.ts";
import { sayRequired } from "./service-settings.ts";
import { SettingsLines } from "./settings-lines.ts";

/** Settings of `kvmesh up` and the sections that it hands to services. */
export interface UpSettings {
  readonly mesh: MeshConfig;
  readonly envoy: EnvoyConfig;
  readonly sections: Readonly<Record<PlannedService, Settings>>;
  /** Where each setting stands in the file. */
  readonly lines: SettingsLines;
  /** `mesh.x.y` and `envoy.x.y` with value and source, a line each. */
  readonly effective: readonly string[];
}

/**
 * Reads kvmesh.yaml (`file`, or the one in `cwd` when there is one) and `KVMESH_MESH__…`, `KVMESH_ENVOY__…`. Throws
 * `ConfigError` with all problems. Sections of services are checked by the services themselves
 * (`checkServiceSettings`).
 */
export function readUpSettings(options: {
  readonly file: string | undefined;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** `path=value` under `mesh`. */
  readonly sets: readonly string[];
}): UpSettings {
  const usual = resolve(options.cwd, "kvmesh.yaml");
  const file = options.file ?? (existsSync(usual) ? usual : undefined);
  const { env } = options;
  const problems: string[] = [];
  const lines = new SettingsLines(file);
  const { sets } = options;
  const mesh = gather(problems, lines, () =>
    resolveConfig({ service: "mesh", schema: MeshConfig, file, env, sets }),
  );
  const envoy = gather(problems, lines, () =>
    resolveConfig({ service: "envoy", schema: EnvoyConfig, file, env, sets: [] }),
  );
  if (mesh === undefined || envoy === undefined) throw new ConfigError([...new Set(problems)]);
  const twins = findTwins(mesh.config.workers, lines);
  if (twins.length > 0) throw new ConfigError(twins);
  const whole: unknown = file === undefined ? {} : parse(readFileSync(file, "utf8"));
  const section = (name: PlannedService): Settings => {
    const value = (whole as Record<string, unknown> | null)?.[name];
    return typeof value === "object" && value !== null ? (value as Settings) : {};
  };
  return {
    mesh: mesh.config,
    envoy: envoy.config,
    sections: {
      router: section("router"),
      relay: section("relay"),
      worker: section("worker"),
      engine: section("engine"),
      console: section("console"),
    },
    lines,
    effective: [...effectiveLines("mesh", mesh), ...effectiveLines("envoy", envoy)],
  };
}

/** Notes what is wrong with the settings, in plainer words and at the nearest line, and goes on. */
function gather<T>(problems: string[], lines: SettingsLines, read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    problems.push(...error.problems.map((problem) => atNearestLine(problem, lines)));
    return undefined;
  }
}

function atNearestLine(problem: string, lines: SettingsLines): string {
  const groups = /^(?<where>.*:\d+|settings): (?<path>[a-z]\w*(?:\.\w+)+): (?<text>.*)$/u.exec(
    problem,
  )?.groups;
  if (groups === undefined) return problem;
  const { path = "", text = "" } = groups;
  const keys = path.split(".").map((key) => (/^\d+$/.test(key) ? Number(key) : key));
  return `${lines.where(keys)}: ${path}: ${sayRequired(text)}`;
}

/** Workers that share an id or an engine: one of two would be refused, or one engine be counted twice. */
function findTwins(workers: readonly MeshWorkerConfig[], lines: SettingsLines): string[] {
  const problems: string[] = [];
  const keys = [
    { key: "id", of: (one: MeshWorkerConfig) => one.id, mend: "give each worker its own" },
    {
      key: "engine",
      of: (one: MeshWorkerConfig) => new URL(one.engine).href,
      mend: "one engine has one worker",
    },
  ] as const;
  for (const { key, of, mend } of keys) {
    const first = new Map<string, number>();
    for (const [index, worker] of workers.entries()) {
      const value = of(worker);
      const before = first.get(value);
      if (before === undefined) {
        first.set(value, index);
        continue;
      }
      const where = (at: number): string => lines.where(["mesh", "workers", at, key]);
      problems.push(
        `${where(index)}: mesh.workers.${String(index)}.${key}: ${worker[key]} is taken by mesh.workers.${String(before)} (${where(before)}); ${mend}`,
      );
    }
  }
  return problems;
}

function effectiveLines(section: string, { config, sources }: LoadedConfig<unknown>): string[] {
  const lines: string[] = [];
  const walk = (value: unknown, path: string): void => {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) walk(inner, `${path}.${key}`);
    } else {
      const source = sources.get(path.slice(section.length + 1)) ?? "default";
      lines.push(`${path} = ${JSON.stringify(value)}  # ${source}`);
    }
  };
  walk(config, section);
  return lines;
}
