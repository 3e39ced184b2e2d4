import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildBootstrap } from "../../envoy/bootstrap.ts";
import { defaultOptions, type EnvoyOptions } from "../../envoy/options.ts";
import { startEchoEngine, type EchoEngine } from "./echo-engine.ts";
import { startEnvoy, type RunningEnvoy } from "./envoy.ts";
import { startScriptedRouter, type ScriptedRouter } from "./scripted-router.ts";

/** An HTTP answer, read to its end. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
}

/** A real Envoy with our generated configuration, scripted routers and two engines in two pools. */
export interface Gateway {
  readonly envoy: RunningEnvoy;
  readonly routers: readonly ScriptedRouter[];
  /** The first router. */
  readonly router: ScriptedRouter;
  /** Engine of pool `default`, which serves model `m/1`. */
  readonly own: EchoEngine;
  /** Engine of pool `other`. */
  readonly other: EchoEngine;
  send(
    listener: "public" | "trusted",
    request: {
      readonly method?: string;
      readonly path?: string;
      readonly headers?: Readonly<Record<string, string>>;
      readonly body?: unknown;
    },
  ): Promise<Answer>;
  stop(): Promise<void>;
}

const loopback = { host: "127.0.0.1", port: 0 };

/** Starts one; everything it started ends with `stop`. */
export async function startGateway(
  overrides: Partial<EnvoyOptions> = {},
  routerCount = 1,
): Promise<Gateway> {
  const dir = await mkdtemp(join(tmpdir(), "kvmesh-envoy-"));
  const own = await startEchoEngine("own");
  const other = await startEchoEngine("other");
  const routers: ScriptedRouter[] = [];
  for (let index = 0; index < routerCount; index += 1) {
    const router = await startScriptedRouter({ pools: ["default"], epoch: `e${index.toString()}` });
    router.ads.setMembers([
      { workerId: "own", pool: "default", endpoint: own.endpoint, state: "ready" },
      { workerId: "other", pool: "other", endpoint: other.endpoint, state: "ready" },
    ]);
    router.ads.setKnowledge("complete");
    routers.push(router);
  }
  const [router] = routers;
  if (router === undefined) throw new Error("at least one router is needed");
  const hosts = routers.map(({ port }) => ({ host: "127.0.0.1", port }));
  const stopParts = async (): Promise<void> => {
    for (const each of routers) await each.stop();
    await own.stop();
    await other.stop();
  };
  let envoy: RunningEnvoy;
  try {
    envoy = await startEnvoy({
      dir,
      bootstrap: buildBootstrap({
        ...defaultOptions,
        public: loopback,
        trusted: loopback,
        admin: loopback,
        routers: hosts,
        controls: hosts,
        otlp: undefined,
        defaultPool: { id: "default", models: ["m/1"], failOpen: true },
        accessLogPath: join(dir, "access.log"),
        ...overrides,
      }),
      waitForClusters: ["pool-default", "pool-other"],
    });
  } catch (error) {
    await stopParts();
    throw error;
  }
  return {
    envoy,
    routers,
    router,
    own,
    other,
    send: async (listener, { method = "POST", path = "/v1/chat/completions", headers, body }) => {
      const port = envoy.ports[listener] ?? 0;
      const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
      const response = await fetch(`http://127.0.0.1:${port.toString()}${path}`, {
        method,
        headers: { "content-type": "application/json", ...headers },
        ...(text === undefined ? {} : { body: text }),
        signal: AbortSignal.timeout(20_000),
      });
      return { status: response.status, headers: response.headers, text: await response.text() };
    },
    stop: async () => {
      await envoy.stop();
      await stopParts();
      await rm(dir, { recursive: true, force: true });
    },
  };
}
