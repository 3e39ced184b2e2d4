import { setTimeout as sleep } from "node:timers/promises";
import { cpuMs, residentBytes } from "./process-figures.ts";
import { RouterProcess } from "./router-process.ts";
import { ScriptedMembers } from "./scripted-members.ts";

/** Blocks in one delta: one request's last blocks, a step of a busy engine, a merged delta. */
const deltaSizes = [8, 64, 512] as const;
const none = Buffer.alloc(0);

/** How fast a router takes deltas of one size. */
export interface RouterEventRates {
  readonly blocksPerDelta: number;
  readonly kind: "stored" | "removed";
  readonly blocks: number;
  /** From the first delta written to the last one acknowledged, over all members. */
  readonly blocksPerSecond: number;
  /** CPU of the router process. */
  readonly cpuNsPerBlock: number;
}

/** What was measured. */
export interface RouterEventsReport {
  readonly members: number;
  readonly rates: readonly RouterEventRates[];
  readonly residentBytes: number;
}

/** Distinct hashes as on the wire, 8 bytes each: a bijective scramble of a counter. */
function makeHashes(from: number, count: number): Buffer {
  const words = new Uint32Array(2 * count);
  for (let i = 0; i < count; i++) {
    let h = from + i + 1;
    h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
    h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
    words[2 * i] = h ^ (h >>> 16);
    words[2 * i + 1] = Math.imul(h, 0x9e3779b1);
  }
  return Buffer.from(words.buffer);
}

/**
 * A router process that takes deltas over real Join streams from `membersCount` members at once, as fast as flow
 * control lets them send. Each member stores blocks of its own, then removes them.
 */
export async function measureRouterEvents(options: {
  readonly membersCount: number;
  readonly blocks: number;
}): Promise<RouterEventsReport> {
  const { membersCount } = options;
  const router = await RouterProcess.start({ membersMax: Math.max(64, membersCount) });
  const members = await ScriptedMembers.join({
    count: membersCount,
    target: `127.0.0.1:${router.ports.control.toString()}`,
    keys: router.keys,
  });
  await router.untilServing();
  const perMember = Math.floor(options.blocks / membersCount / 512) * 512;
  if (perMember === 0) throw new Error(`--blocks must be at least ${512 * membersCount}`);
  const blocks = perMember * membersCount;

  const sendAll = async (
    id: string,
    hashes: Buffer,
    size: number,
    kind: "stored" | "removed",
  ): Promise<void> => {
    const member = members.get(id);
    for (let at = 0; at < hashes.length; at += 8 * size) {
      const part = hashes.subarray(at, at + 8 * size);
      const more = kind === "stored" ? member.delta(part, none) : member.delta(none, part);
      if (!more) await member.drained();
    }
    // A load report is acknowledged at once, with the last delta applied.
    member.load();
    while (member.appliedSeq < member.sentSeq) await sleep(1);
  };

  const rates: RouterEventRates[] = [];
  const run = async (size: number, from: number): Promise<void> => {
    const hashes = members.ids.map((_, i) => makeHashes(from + i * perMember, perMember));
    for (const kind of ["stored", "removed"] as const) {
      const cpuBefore = cpuMs(router.pid);
      const startedAt = performance.now();
      await Promise.all(members.ids.map((id, i) => sendAll(id, hashes[i] as Buffer, size, kind)));
      const seconds = (performance.now() - startedAt) / 1_000;
      const cpuNsPerBlock = ((cpuMs(router.pid) - cpuBefore) * 1e6) / blocks;
      rates.push({
        blocksPerDelta: size,
        kind,
        blocks,
        blocksPerSecond: blocks / seconds,
        cpuNsPerBlock,
      });
      await sleep(200);
      const pairs = (await router.metrics()).total("kvmesh_router_index_pairs");
      const expected = kind === "stored" ? blocks : 0;
      if (pairs !== expected) {
        throw new Error(`the index holds ${pairs} pairs instead of ${expected}`);
      }
    }
  };
  let from = 0;
  for (const size of deltaSizes) {
    await run(size, from);
    from += blocks;
  }
  const report = { members: membersCount, rates, residentBytes: residentBytes(router.pid) };
  members.close();
  await router.stop();
  return report;
}
