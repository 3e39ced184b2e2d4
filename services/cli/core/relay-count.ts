import { mergeSettings, type Settings } from "./mesh-plan.ts";

/**
 * How many relays a mesh gets: what the settings say, and else one where somebody needs it: a worker of one side of prefill/decode
 * pairs (`engine.role`), or streams that pass one to be guarded (`relay` as `stream.guard`, or of one of `stream.pools`). Pure.
 */
export function relaysWanted(input: {
  /** `mesh.relays`. */
  readonly configured: number | "auto";
  /** Section `router`. */
  readonly router: Settings;
  /** Section `worker`, and what lies over it for each worker. */
  readonly worker: Settings;
  readonly members: readonly Settings[];
}): number {
  const { configured, router, worker, members } = input;
  if (configured !== "auto") return configured;
  const isPaired = members.some((own) => {
    const role = at(mergeSettings(worker, own), "engine", "role");
    return role === "prefill" || role === "decode";
  });
  const pools = at(router, "stream", "pools");
  const guards = [
    at(router, "stream", "guard"),
    ...(typeof pools === "object" && pools !== null ? Object.values(pools as Settings) : []),
  ];
  return isPaired || guards.includes("relay") ? 1 : 0;
}

function at(settings: Settings, section: string, key: string): unknown {
  const inner = settings[section];
  return typeof inner === "object" && inner !== null ? (inner as Settings)[key] : undefined;
}
