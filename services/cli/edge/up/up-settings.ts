import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parse } from "yaml";
import { resolveConfig } from "../../../shared/edge/config.ts";
import { EnvoyConfig, MeshConfig } from "../../config.ts";
import type { PlannedService, Settings } from "../../core/mesh-plan.ts";

/** Settings of `kvmesh up` and the sections that it hands to services. */
export interface UpSettings {
  readonly mesh: MeshConfig;
  readonly envoy: EnvoyConfig;
  readonly sections: Readonly<Record<PlannedService, Settings>>;
}

/**
 * Reads kvmesh.yaml (`file`, or the one in `cwd` when there is one) and `KVMESH_MESH__…`, `KVMESH_ENVOY__…`. Throws
 * `ConfigError` with all problems. Sections of services are checked by the services themselves.
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
  const mesh = resolveConfig({
    service: "mesh",
    schema: MeshConfig,
    file,
    env,
    sets: options.sets,
  });
  const envoy = resolveConfig({ service: "envoy", schema: EnvoyConfig, file, env, sets: [] });
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
      worker: section("worker"),
      engine: section("engine"),
      console: section("console"),
    },
  };
}
