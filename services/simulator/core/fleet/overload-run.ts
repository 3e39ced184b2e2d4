import type { AdmissionOptions } from "../../../router/core/admission/options.ts";
import type { RoomOptions } from "../../../router/core/admission/worker-rooms.ts";
import { SeededRandom } from "../../../shared/core/random.ts";
import { Fleet, type FleetRecord } from "./fleet.ts";
import { defaultDelays, type FleetDelays, type FleetOptions } from "./fleet-options.ts";
import { fleetStepModel } from "./fleet-run.ts";

/** One tenant of an overload. */
export interface OverloadTenant {
  readonly name: string;
  /** Class or number in its priority header; empty for none. */
  readonly priority: string;
  readonly perSecond: number;
  /** Router that all its requests reach; `undefined` spreads them. */
  readonly router?: number;
}

/** An overload to run. */
export interface OverloadOptions {
  readonly seed: number;
  readonly engines: number;
  readonly routers: number;
  /** Absent, every request is placed at once. */
  readonly admission?: AdmissionOptions;
  readonly rooms?: RoomOptions;
  /** How long things take between processes, where not as by default. */
  readonly delays?: Partial<FleetDelays>;
  readonly tenants: readonly OverloadTenant[];
  readonly forMs: number;
  /** Time between two calls of `atEach`, ms; a second when absent. */
  readonly lookEveryMs?: number;
  /** Groups of prompts that share their first half. */
  readonly groups: number;
  /** Mean length of a prompt, tokens. */
  readonly promptTokensMean: number;
  readonly outputTokensMean: number;
}

const blockTokens = 16;

function fleetFor(options: OverloadOptions): FleetOptions {
  return {
    seed: options.seed,
    engines: options.engines,
    routers: options.routers,
    engine: {
      model: fleetStepModel,
      blockSizeTokens: blockTokens,
      kvTokens: 160_000,
      contextTokensMax: 32_000,
      stepTokensMax: 8_192,
      runningMax: 256,
    },
    announcedModel: fleetStepModel,
    meshBlockSizeTokens: blockTokens,
    policy: "kv",
    delays: { ...defaultDelays, ...options.delays },
    view: "live",
    tellsTokensMax: false,
    graceMs: 5_000,
    ...(options.admission === undefined ? {} : { admission: options.admission }),
    ...(options.rooms === undefined ? {} : { rooms: options.rooms }),
  };
}

/** Tokens of a prompt: the first half is its group's, the rest its own. Lengths vary by a factor of 16. */
function promptOf(random: SeededRandom, options: OverloadOptions, index: number): Uint32Array {
  // Between a quarter of the mean and four times it, with that mean.
  const length = Math.round(options.promptTokensMean * 0.54 * 4 ** (2 * random.next() - 1));
  const tokens = new Uint32Array(length);
  const group = random.int(options.groups);
  const shared = Math.floor(length / 2);
  for (let i = 0; i < length; i++) {
    tokens[i] = (Math.imul(i < shared ? group + 1 : index + 1_000_000, 0x9e3779b1) ^ i) >>> 8;
  }
  return tokens;
}

/**
 * Runs clients that ask for more than engines can give, whatever becomes of their requests: arrivals at random, prompts of
 * very different lengths that share beginnings. Returns the fleet after the last answer.
 */
export function runOverload(options: OverloadOptions, atEach?: (fleet: Fleet) => void): Fleet {
  const fleet = new Fleet(fleetFor(options));
  const startMs = fleet.time.now;
  let index = 0;
  for (const tenant of options.tenants) {
    const random = new SeededRandom(options.seed).fork(`tenant ${tenant.name}`);
    const hints = {
      tenant: tenant.name,
      priority: tenant.priority,
      session: "",
      ttftMs: undefined,
      itlMs: undefined,
    };
    const next = (atMs: number): void => {
      if (atMs > options.forMs) return;
      fleet.request(startMs + atMs, () => {
        next(atMs - (Math.log(1 - random.next()) * 1_000) / tenant.perSecond);
        index++;
        return {
          index,
          promptTokens: promptOf(random, options, index),
          outputTokens: 1 + random.int(2 * options.outputTokensMean - 1),
          hints,
          ...(tenant.router === undefined ? {} : { router: tenant.router }),
        };
      });
    };
    next(-(Math.log(1 - random.next()) * 1_000) / tenant.perSecond);
  }
  const endMs = startMs + options.forMs;
  const lookEveryMs = options.lookEveryMs ?? 1_000;
  for (let at = startMs + lookEveryMs; at <= endMs; at += lookEveryMs) {
    fleet.time.runUntil(at);
    atEach?.(fleet);
  }
  fleet.time.runUntil(endMs + 60_000);
  return fleet;
}

/** Figures of an overload. */
export interface OverloadFigures {
  readonly arrived: number;
  readonly answered: number;
  readonly refused: number;
  readonly failed: number;
  /** Answers a second that ended within the measured time. */
  readonly goodputPerSecond: number;
  /** From arrival to first token of answered requests, ms. */
  readonly ttftMsP50: number;
  readonly ttftMsP99: number;
  /** In the router, of requests that got a worker, ms. */
  readonly waitMsP99: number;
  readonly waitMsMax: number;
  /** From arrival to refusal, ms. */
  readonly refusalMsP99: number;
  /** Share of requests that waited, 0 to 1. */
  readonly waitedRatio: number;
  readonly hitTokenRatio: number;
}

function quantile(values: number[], q: number): number {
  values.sort((a, b) => a - b);
  return values[Math.max(0, Math.ceil(q * values.length) - 1)] ?? 0;
}

/** Sums up the requests due in a part of the run; times in ms of the run. */
export function overloadFigures(
  records: readonly FleetRecord[],
  part: { readonly fromMs: number; readonly toMs: number },
): OverloadFigures {
  const due = records.filter((r) => r.dueMs >= part.fromMs && r.dueMs < part.toMs);
  const answered = due.filter((r) => r.outcome === "answered");
  const refused = due.filter((r) => r.outcome === "refused");
  const ended = records.filter(
    (r) => r.outcome === "answered" && r.endMs >= part.fromMs && r.endMs < part.toMs,
  );
  const ttft = answered.map((r) => r.firstTokenMs - r.dueMs);
  const waits = answered.map((r) => r.waitedMs);
  const promptTokens = answered.reduce((sum, r) => sum + r.promptTokens, 0);
  const cachedTokens = answered.reduce((sum, r) => sum + r.cachedTokens, 0);
  return {
    arrived: due.length,
    answered: answered.length,
    refused: refused.length,
    failed: due.filter((r) => r.outcome === "failed").length,
    goodputPerSecond: (ended.length * 1_000) / (part.toMs - part.fromMs),
    ttftMsP50: quantile(ttft, 0.5),
    ttftMsP99: quantile(ttft, 0.99),
    waitMsP99: quantile(waits, 0.99),
    waitMsMax: quantile(waits, 1),
    refusalMsP99: quantile(
      refused.map((r) => r.endMs - r.dueMs),
      0.99,
    ),
    waitedRatio: due.length === 0 ? 0 : due.filter((r) => r.waitedMs > 0).length / due.length,
    hitTokenRatio: promptTokens === 0 ? 0 : cachedTokens / promptTokens,
  };
}
