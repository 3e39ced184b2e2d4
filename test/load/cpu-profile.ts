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

/** Functions by self time of the largest profile in a folder, which is the main thread's. */
export function readSelfTimes(folder: string): SelfTime[] {
  const profiles = readdirSync(folder)
    .filter((name) => name.endsWith(".cpuprofile"))
    .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as CpuProfile)
    .sort((a, b) => b.nodes.length - a.nodes.length);
  const [profile] = profiles;
  if (profile === undefined) throw new Error(`${folder} holds no profile`);
  const places = new Map(profile.nodes.map((node) => [node.id, placeOf(node)]));
  const totals = new Map<string, number>();
  let busyUs = 0;
  profile.samples.forEach((id, i) => {
    const place = places.get(id) ?? "?";
    const us = profile.timeDeltas[i] ?? 0;
    if (place === "(idle)") return;
    busyUs += us;
    totals.set(place, (totals.get(place) ?? 0) + us);
  });
  return [...totals]
    .map(([place, us]) => ({ place, ms: us / 1_000, share: us / busyUs }))
    .sort((a, b) => b.ms - a.ms);
}
