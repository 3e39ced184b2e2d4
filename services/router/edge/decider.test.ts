import { pino } from "pino";
import { expect, test, vi } from "vitest";
import { memberFacts, routerCore } from "../../../test/support/router-builders.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import { noTracing } from "../../shared/edge/tracing.ts";
import { routerMetrics } from "../metrics.ts";
import { Decider } from "./decider.ts";
import { ModelRuntimes } from "./model-runtimes.ts";

test.each(["GET", "HEAD"])(
  "%s: a request that has to wait keeps its wait and its hints",
  (method) => {
    const core = routerCore();
    core.admit(memberFacts(0), 1, realClock.now());
    const cancel = vi.fn();
    const placeInTurn = vi.spyOn(core, "placeInTurn").mockReturnValue({ waitMsMax: 1_000, cancel });
    const log = pino({ level: "silent" });
    const dependencies = {
      core,
      runtimes: new ModelRuntimes({ hashSeed: new Uint8Array(32), log, cacheFolder: "" }),
      clock: realClock,
      tracing: noTracing,
      metrics: createMetrics(routerMetrics).metrics,
      defaultPool: "default",
      blockSizeTokens: 16,
      duplexFallbacks: false,
      admissionWaitMsMax: 5_000,
      onDecision: () => undefined,
      onWaiting: () => undefined,
    };
    const headers = new Map([["x-kvmesh-tenant", "acme"]]);
    const answer = vi.fn();
    const waiting = new Decider(dependencies).decide(
      { headers, body: [], bodyBytes: 0, truncated: false },
      {
        method,
        path: "/v1/other",
        requestId: "r",
        parent: undefined,
        link: undefined,
        subset: undefined,
        startedUnixUs: 0,
        bodyMode: "none",
        bodyChunks: 0,
      },
      answer,
    );
    expect(answer).not.toHaveBeenCalled();
    expect(placeInTurn.mock.calls[0]?.[0].hints.tenant).toBe("acme");
    expect(waiting?.waitMsMax).toBeGreaterThanOrEqual(1_000);
    waiting?.cancel();
    expect(cancel).toHaveBeenCalledOnce();
  },
);
