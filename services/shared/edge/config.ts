import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { LineCounter, isMap, isScalar, parseDocument, type Document } from "yaml";
import type { z } from "zod";
import { configProblems, unknownKeyText } from "./config-problems.ts";
import { productVersion } from "./log.ts";

/** Keys that `kvmesh.yaml` may have, one per service. */
export const configSections = [
  "mesh",
  "router",
  "worker",
  "relay",
  "engine",
  "console",
  "envoy",
  "cli",
] as const;

/** Where a value came from. */
export type ConfigSource = "default" | "file" | "environment" | "flag";

/** Settings as a service uses them, frozen, with the source of each path that is not a default. */
export interface LoadedConfig<T> {
  readonly config: T;
  readonly sources: ReadonlyMap<string, ConfigSource>;
}

/** All problems of the settings at once; `main` prints them and exits 2 before anything listens. */
export class ConfigError extends Error {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join("\n"));
    this.name = "ConfigError";
    this.problems = problems;
  }
}

type Tree = Record<string, unknown>;

function setPath(tree: Tree, path: readonly string[], value: unknown): void {
  let node = tree;
  for (const key of path.slice(0, -1)) {
    const next = node[key];
    if (typeof next !== "object" || next === null || Array.isArray(next)) node[key] = {};
    node = node[key] as Tree;
  }
  const last = path.at(-1);
  if (last !== undefined) node[last] = value;
}

/** A value given as text: YAML scalars and flow lists, so that `4`, `true`, `[a, b]` and plain words work. */
function parseText(text: string): unknown {
  const document = parseDocument(text);
  return document.errors.length > 0 ? text : (document.toJS() as unknown);
}

function environmentPath(name: string): string[] {
  return name
    .split("__")
    .map((part) => part.toLowerCase().replace(/_([a-z0-9])/g, (_, c: string) => c.toUpperCase()));
}

function lineOf(
  document: Document | undefined,
  lines: LineCounter,
  path: readonly PropertyKey[],
): number | undefined {
  if (document === undefined) return undefined;
  for (let depth = path.length; depth > 0; depth--) {
    const keys = path.slice(0, depth);
    const parent = depth === 1 ? document.contents : document.getIn(keys.slice(0, -1), true);
    if (isMap(parent)) {
      const pair = parent.items.find(
        (item) => isScalar(item.key) && item.key.value === keys.at(-1),
      );
      if (pair !== undefined && isScalar(pair.key) && pair.key.range) {
        return lines.linePos(pair.key.range[0]).line;
      }
    }
    const node = document.getIn(keys, true);
    if (isScalar(node) && node.range) return lines.linePos(node.range[0]).line;
  }
  return undefined;
}

interface Inputs {
  readonly tree: Tree;
  readonly sources: Map<string, ConfigSource>;
  readonly file: string | undefined;
  readonly document: Document | undefined;
  readonly lines: LineCounter;
  readonly problems: string[];
}

function readFile(
  service: string,
  file: string | undefined,
  problems: string[],
): Omit<Inputs, "problems"> {
  const lines = new LineCounter();
  const sources = new Map<string, ConfigSource>();
  if (file === undefined) return { tree: {}, sources, file, document: undefined, lines };
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    problems.push(`${file}: cannot be read: ${(error as Error).message}`);
    return { tree: {}, sources, file, document: undefined, lines };
  }
  const document = parseDocument(text, { lineCounter: lines });
  for (const error of document.errors) {
    problems.push(`${file}:${lines.linePos(error.pos[0]).line.toString()}: ${error.message}`);
  }
  const whole = document.errors.length > 0 ? {} : ((document.toJS() ?? {}) as unknown);
  if (typeof whole !== "object" || whole === null || Array.isArray(whole)) {
    problems.push(`${file}:1: must be a map with the keys ${configSections.join(", ")}`);
    return { tree: {}, sources, file, document, lines };
  }
  for (const key of Object.keys(whole)) {
    if (!(configSections as readonly string[]).includes(key)) {
      const line = lineOf(document, lines, [key]) ?? 1;
      problems.push(`${file}:${line.toString()}: ${key}: ${unknownKeyText(key, configSections)}`);
    }
  }
  const own = (whole as Tree)[service] ?? {};
  if (typeof own !== "object" || Array.isArray(own)) {
    const line = lineOf(document, lines, [service]) ?? 1;
    problems.push(
      `${file}:${line.toString()}: ${service}: must be a map, got ${JSON.stringify(own)}`,
    );
    return { tree: {}, sources, file, document, lines };
  }
  const mark = (value: unknown, path: string): void => {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      for (const [k, v] of Object.entries(value)) mark(v, path === "" ? k : `${path}.${k}`);
    } else sources.set(path, "file");
  };
  mark(own, "");
  return { tree: structuredClone(own) as Tree, sources, file, document, lines };
}

function applyOverrides(
  inputs: Inputs,
  service: string,
  env: Readonly<Record<string, string | undefined>>,
  sets: readonly string[],
): void {
  const prefix = `KVMESH_${service.toUpperCase()}__`;
  for (const [name, text] of Object.entries(env)) {
    if (text === undefined || !name.startsWith(prefix)) continue;
    const path = environmentPath(name.slice(prefix.length));
    setPath(inputs.tree, path, parseText(text));
    inputs.sources.set(path.join("."), "environment");
  }
  for (const set of sets) {
    const equals = set.indexOf("=");
    if (equals < 1) {
      inputs.problems.push(`--set ${set}: must be path=value`);
      continue;
    }
    const path = set.slice(0, equals);
    setPath(inputs.tree, path.split("."), parseText(set.slice(equals + 1)));
    inputs.sources.set(path, "flag");
  }
}

/** Where the value at a path came from; of a map, where the first thing inside it did. */
function sourceOf(
  sources: ReadonlyMap<string, ConfigSource>,
  path: readonly PropertyKey[],
): ConfigSource | undefined {
  for (let depth = path.length; depth > 0; depth--) {
    const text = path.slice(0, depth).map(String).join(".");
    const source = sources.get(text);
    if (source !== undefined) return source;
    if (depth < path.length) continue;
    for (const [key, inner] of sources) if (key.startsWith(`${text}.`)) return inner;
  }
  return undefined;
}

function freeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) freeze(inner);
  }
  return value;
}

/**
 * Reads a service's settings: schema defaults, then its key of the YAML file (`--config`, default `kvmesh.yaml`
 * in `cwd` when it exists), then `KVMESH_<SERVICE>__A__B_C`, then `--set a.bC=value`; later wins.
 * Throws `ConfigError` with every problem, each naming file and line, path, what is accepted and what was given.
 */
export function resolveConfig<S extends z.ZodType>(options: {
  service: string;
  schema: S;
  file: string | undefined;
  env: Readonly<Record<string, string | undefined>>;
  sets: readonly string[];
}): LoadedConfig<z.infer<S>> {
  const problems: string[] = [];
  const inputs: Inputs = { ...readFile(options.service, options.file, problems), problems };
  applyOverrides(inputs, options.service, options.env, options.sets);
  const parsed = options.schema.safeParse(inputs.tree);
  if (!parsed.success) {
    for (const { path, text } of configProblems(options.schema, inputs.tree, parsed.error.issues)) {
      const source = sourceOf(inputs.sources, path);
      const line = lineOf(inputs.document, inputs.lines, [options.service, ...path]);
      const where =
        source === "environment" || source === "flag" || line === undefined
          ? (source ?? "settings")
          : `${inputs.file ?? ""}:${line.toString()}`;
      problems.push(`${where}: ${[options.service, ...path.map(String)].join(".")}: ${text}`);
    }
  }
  if (problems.length > 0 || !parsed.success) throw new ConfigError(problems);
  return { config: freeze(parsed.data), sources: inputs.sources };
}

function printConfig(service: string, loaded: LoadedConfig<unknown>): void {
  const walk = (value: unknown, path: string): void => {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value))
        walk(inner, path === "" ? key : `${path}.${key}`);
      return;
    }
    const secret = /secret|password|token$/i.test(path);
    const text = secret ? '"***"' : JSON.stringify(value);
    process.stdout.write(
      `${service}.${path} = ${text}  # ${loaded.sources.get(path) ?? "default"}\n`,
    );
  };
  walk(loaded.config, "");
}

/**
 * The settings of a service process from its command line: `--config`, `--set`, `--print-config`, `--version`.
 * Ends the process: 0 after `--print-config` and `--version`, 2 after problems, all printed to stderr.
 */
export function loadConfig<S extends z.ZodType>(options: {
  service: string;
  schema: S;
  argv: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  cwd: string;
}): LoadedConfig<z.infer<S>> {
  const fail = (problems: readonly string[]): never => {
    for (const problem of problems) process.stderr.write(`${problem}\n`);
    process.exit(2);
  };
  try {
    const { values } = parseArgs({
      args: [...options.argv],
      options: {
        config: { type: "string" },
        set: { type: "string", multiple: true, default: [] },
        "print-config": { type: "boolean", default: false },
        version: { type: "boolean", default: false },
      },
      strict: true,
      allowPositionals: false,
    });
    if (values.version) {
      process.stdout.write(`${productVersion()}\n`);
      process.exit(0);
    }
    const usual = resolve(options.cwd, "kvmesh.yaml");
    const file = values.config ?? (existsSync(usual) ? usual : undefined);
    const { service, schema, env } = options;
    const loaded = resolveConfig({ service, schema, file, env, sets: values.set });
    if (values["print-config"]) {
      printConfig(service, loaded);
      process.exit(0);
    }
    return loaded;
  } catch (error) {
    if (error instanceof ConfigError) return fail(error.problems);
    if (error instanceof TypeError) return fail([error.message]);
    throw error;
  }
}
