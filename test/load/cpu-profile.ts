import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { repositoryRoot } from "./figures.ts";

interface ProfileNode {
  readonly id: number;
  readonly callFrame: {
    readonly functionName: string;
    readonly url: string;
    readonly lineNumber: number;
  };
}
interface CpuProfile {
  readonly nodes: readonly ProfileNode[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
  /** Monotonic clock, µs. */
  readonly startTime: number;
}

/** One function of a profile. */
export interface SelfTime {
  readonly place: string;
  readonly ms: number;
  /** Share of the time in which the process was not idle. */
  readonly share: number;
}

function placeOf({ callFrame }: ProfileNode): string {
  const { functionName, url, lineNumber } = callFrame;
  const name = functionName === "" ? "(anonymous)" : functionName;
  if (url === "") return name;
  const path = url.startsWith("file:") ? relative(repositoryRoot, fileURLToPath(url)) : url;
  return `${name}  ${path}:${(lineNumber + 1).toString()}`;
}

/** Package, folder of ours, or part of Node that a place lies in. */
function groupOf(place: string): string {
  const [, path] = place.split("  ");
  if (path === undefined) return place;
  const library = /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1];
  if (library !== undefined) return library;
  if (path.startsWith("node:")) return path.replace(/:\d+$/, "");
  return path.slice(0, path.lastIndexOf("/"));
}

/**
 * Self times in the largest profile of a folder, which is the main thread's: by function, and by package or folder.
 * Counts what lies between two times of the monotonic clock (`process.hrtime`), which all processes share.
 */
export function readSelfTimes(
  folder: string,
  span: { readonly fromUs: number; readonly toUs: number },
): { readonly functions: SelfTime[]; readonly groups: SelfTime[] } {
  const profiles = readdirSync(folder)
    .filter((name) => name.endsWith(".cpuprofile"))
    .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as CpuProfile)
    .sort((a, b) => b.nodes.length - a.nodes.length);
  const [profile] = profiles;
  if (profile === undefined) throw new Error(`${folder} holds no profile`);
  const places = new Map(profile.nodes.map((node) => [node.id, placeOf(node)]));
  const byFunction = new Map<string, number>();
  const byGroup = new Map<string, number>();
  let busyUs = 0;
  let atUs = profile.startTime;
  profile.samples.forEach((id, i) => {
    const place = places.get(id) ?? "?";
    const us = profile.timeDeltas[i] ?? 0;
    atUs += us;
    if (place === "(idle)" || atUs < span.fromUs || atUs > span.toUs) return;
    busyUs += us;
    byFunction.set(place, (byFunction.get(place) ?? 0) + us);
    const group = groupOf(place);
    byGroup.set(group, (byGroup.get(group) ?? 0) + us);
  });
  const sorted = (totals: ReadonlyMap<string, number>): SelfTime[] =>
    [...totals]
      .map(([place, us]) => ({ place, ms: us / 1_000, share: us / busyUs }))
      .sort((a, b) => b.ms - a.ms);
  return { functions: sorted(byFunction), groups: sorted(byGroup) };
}
