import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { describeOutcomes, joinAccessLog, startLoad, type LoadOutcome } from "../support/load.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { missingFrom, watchPool } from "../support/pool-watch.ts";

/** Each router once; `npm run nightly:replicas` sets 200. */
const kills = Number(process.env["KVMESH_KILLS"] ?? 3);
const routers = 3;
/** Requests a second, each of which takes a quarter of a second: they fill 60 % of the engines' places. */
const perSecond = 80;
const maxTokens = 12;
/** Slow steps, so that few tokens take that long. */
const speedup = 0.25;
const engineCount = 2;
const placesPerEngine = 16;
const loadShareMin = 0.55;
/** Requests open at once when the machine keeps up, with some to spare: otherwise the routers are killed in overload. */
const openMax = 0.8 * engineCount * placesPerEngine;
/** A kill, the time without the router, its start and a rest take no longer, ms. */
const killMsMax = 30_000;
/** Shares of all requests that kills may leave failed and unplaced. */
const failedShareMax = 0.0001;
const unpickedShareMax = 0.005;

let mesh: TestMesh;

beforeAll(async () => {
  mesh = await startMesh({
    routers,
    engines: engineCount,
    settings: {
      engine: { speedup, runningMax: placesPerEngine },
      // A machine that stands still for a moment makes requests wait; only what a kill breaks is to fail.
      router: { admission: { burstMs: 60_000 } },
    },
  });
});

afterAll(async () => {
  await mesh.stop();
});

/** Share of the engines' places that requests took on average. */
function loadShare(outcomes: readonly LoadOutcome[]): number {
  const busyMs = outcomes.reduce((sum, { sentAt, endedAt }) => sum + endedAt - sentAt, 0);
  const firstAt = Math.min(...outcomes.map(({ sentAt }) => sentAt));
  const lastAt = Math.max(...outcomes.map(({ endedAt }) => endedAt));
  return busyMs / ((lastAt - firstAt) * engineCount * placesPerEngine);
}

describe("with three routers", () => {
  test(
    `${kills} kills in turn at 60 % load break no stream and leave next to nothing unplaced`,
    { timeout: 60_000 + kills * killMsMax },
    async () => {
      const engines = mesh.engineUrls.map((url) => url.replace("http://", "")).toSorted();
      const watch = watchPool(mesh);
      const load = startLoad(mesh, { perSecond, maxTokens });
      await sleep(2_000);
      for (let kill = 0; kill < kills; kill++) {
        await eventually(
          "requests are answered as fast as they come",
          () => load.openCount <= openMax,
          killMsMax,
        );
        const victim = mesh.process(`router-${kill % routers}`);
        await victim.kill("SIGKILL");
        await sleep(1_500);
        await victim.restart();
        await mesh.untilServing();
        await sleep(1_500);
      }
      const outcomes = await joinAccessLog(mesh, await load.stop());
      const failed = outcomes.filter(({ failure }) => failure !== undefined);
      const unpicked = outcomes.filter((one) => one.unpicked !== undefined);
      const share = loadShare(outcomes);
      console.info(
        `${kills} kills, ${outcomes.length} requests at ${(100 * share).toFixed(0)} % load, ` +
          `${failed.length} failed, ${unpicked.length} unpicked`,
      );
      expect(failed.length / outcomes.length, describeOutcomes(failed)).toBeLessThanOrEqual(
        failedShareMax,
      );
      expect(unpicked.length / outcomes.length, describeOutcomes(unpicked)).toBeLessThanOrEqual(
        unpickedShareMax,
      );
      expect(missingFrom(await watch.stop(), engines)).toEqual([]);
      expect(share).toBeGreaterThan(loadShareMin);
    },
  );
});
