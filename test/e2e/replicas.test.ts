import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { describeOutcomes, joinAccessLog, startLoad } from "../support/load.ts";
import { startMesh, type TestMesh } from "../support/mesh.ts";
import { missingFrom, watchPool } from "../support/pool-watch.ts";

/** `npm run nightly:replicas` sets 200; without a number nothing is killed. */
const kills = Number(process.env["KVMESH_KILLS"] ?? 0);
const routers = 3;
const perSecond = 40;
/** A kill, the time without the router, its start and a rest take no longer, ms. */
const killMsMax = 30_000;
/** Shares of all requests that kills may leave failed and unplaced. */
const failedShareMax = 0.0001;
const unpickedShareMax = 0.005;

let mesh: TestMesh;

describe.runIf(kills > 0)("with three routers", () => {
  beforeAll(async () => {
    mesh = await startMesh({ routers, engines: 2 });
  });

  afterAll(async () => {
    await mesh.stop();
  });

  test(
    `${kills} kills in turn under load break no stream and leave next to nothing unplaced`,
    { timeout: 60_000 + kills * killMsMax },
    async () => {
      const engines = mesh.engineUrls.map((url) => url.replace("http://", "")).toSorted();
      const watch = watchPool(mesh);
      const load = startLoad(mesh, { perSecond });
      await sleep(1_000);
      for (let kill = 0; kill < kills; kill++) {
        const victim = mesh.process(`router-${kill % routers}`);
        await victim.kill("SIGKILL");
        await sleep(1_500);
        await victim.restart();
        await mesh.untilServing();
        await sleep(500);
      }
      const outcomes = await joinAccessLog(mesh, await load.stop());
      const failed = outcomes.filter(({ failure }) => failure !== undefined);
      const unpicked = outcomes.filter((one) => one.unpicked !== undefined);
      console.info(
        `${kills} kills, ${outcomes.length} requests, ${failed.length} failed, ${unpicked.length} unpicked`,
      );
      expect(failed.length / outcomes.length, describeOutcomes(failed)).toBeLessThanOrEqual(
        failedShareMax,
      );
      expect(unpicked.length / outcomes.length, describeOutcomes(unpicked)).toBeLessThanOrEqual(
        unpickedShareMax,
      );
      expect(missingFrom(await watch.stop(), engines)).toEqual([]);
    },
  );
});
