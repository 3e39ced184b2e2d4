/**
 * One step of the router's ladder, a process of its own: `router-ladder-process.ts <step> <keys file> <members>` serves
 * `ext_proc` on the router's hot server and takes each request as far as that step.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { RouterConfig } from "../../services/router/config.ts";
import { RouterCore } from "../../services/router/core/router-core.ts";
import { createHotServer } from "../../services/router/edge/hot-server.ts";
import { ModelRuntimes } from "../../services/router/edge/model-runtimes.ts";
import { routerMetrics } from "../../services/router/metrics.ts";
import { parseCidr } from "../../services/shared/core/cidr.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { loadKeys } from "../../services/shared/edge/keys.ts";
import { createMetrics } from "../../services/shared/edge/metrics.ts";
import { noTracing } from "../../services/shared/edge/tracing.ts";
import { memberFacts } from "../support/router-builders.ts";
import { benchModel } from "./chat-prompts.ts";
import { createLadderDecider, ladderSteps } from "./router-ladder-decider.ts";
import { repositoryRoot } from "./figures.ts";
import { blockSizeTokens } from "./router-process.ts";
import { engineSteps, modelFolder, modelTokens, readChatTemplate } from "./scripted-members.ts";

const [name = "", keysFile = "", members = "8"] = process.argv.slice(2);
const step = ladderSteps.find((one) => one === name);
if (step === undefined) throw new Error(`no step ${name}; there are ${ladderSteps.join(", ")}`);
const config = RouterConfig.parse({});
const clock = realClock;
const log = pino({ level: "silent" });
const { metrics } = createMetrics(routerMetrics);
const { limits, placement } = config;
const core = new RouterCore({
  decisionPrefix: "ladder.1",
  blockSizeTokens,
  policy: config.policy,
  graceMs: 1e9,
  membersMax: Math.max(64, Number(members)),
  blocksMax: limits.blocksMax,
  reservationsMax: limits.reservationsMax,
  decisionsMax: limits.decisionsMax,
  outputTokensDefault: placement.outputTokensDefault,
  fallbacksMax: placement.fallbacksMax,
  affinityMs: placement.affinityMs,
  preference: placement.preference,
});
const runtimes = new ModelRuntimes({
  hashSeed: loadKeys(keysFile).hashSeed,
  log,
  cacheFolder: join(repositoryRoot, ".kvmesh/cache"),
  tokenCacheBytesMax: limits.tokenCacheBytesMax,
});

const files = [
  readFileSync(join(modelFolder, "tokenizer.json")),
  Buffer.from(readChatTemplate()),
].map((content) => ({ content, sha256: createHash("sha256").update(content).digest("hex") }));
const [tokenizer, template] = files;
for (let i = 0; i < Number(members); i++) {
  const facts = memberFacts(i, {
    endpoint: `127.0.0.1:${String(8_000 + i)}`,
    models: [benchModel],
    contextTokensMax: 1_000_000,
    capacityTokens: 512_000_000,
    stepModel: engineSteps,
    tokenizerSha256: tokenizer?.sha256 ?? "",
    chatTemplateSha256: template?.sha256 ?? "",
    bosToken: modelTokens.bos,
    eosToken: modelTokens.eos,
  });
  core.admit(facts, i + 1, clock.now());
  runtimes.learn(facts);
}
for (const { sha256, content } of files) runtimes.deliver(sha256, content);
while (!runtimes.settled) await sleep(20);

const decider = createLadderDecider(step, {
  core,
  runtimes,
  clock,
  tracing: noTracing,
  metrics,
  defaultPool: config.pools.default,
  blockSizeTokens,
  duplexFallbacks: placement.duplexFallbacks,
  admissionWaitMsMax: 5_000,
});
const { bodyBytesMax, bodyMemoryBytesMax } = limits;
const server = createHotServer("lean", {
  extProc: { decider, clock, log, metrics, limits: { bodyBytesMax, bodyMemoryBytesMax } },
  onRecord: () => undefined,
  allowed: config.callers.proxy.flatMap((text) => parseCidr(text) ?? []),
  onRefused: () => undefined,
});
const port = await server.listen("127.0.0.1", 0);
process.send?.({ kind: "ready", port });
process.on("disconnect", () => process.exit(0));
process.on("SIGTERM", () => process.exit(0));
