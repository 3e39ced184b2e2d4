import { envoyVersionFloor, isVersionAtLeast } from "./envoy-state.ts";

/** How bad a finding is. `problem` makes `doctor` exit 1. */
export type Severity = "ok" | "note" | "problem";

/** One thing that was looked at. */
export interface Finding {
  readonly severity: Severity;
  /** What was looked at, a few words. */
  readonly subject: string;
  /** What was found, with the values. */
  readonly text: string;
  /** How to mend it; empty when there is nothing to mend. */
  readonly mend: string;
}

/** A running mesh's Envoy as its admin interface tells it. */
export interface EnvoyFacts {
  readonly url: string;
  /** Why the interface could not be asked; then the rest is empty. */
  readonly problem?: string;
  readonly version?: string;
  readonly live: boolean;
  readonly failureModeAllowed: number;
  readonly streamsFailed: number;
  readonly messageTimeouts: number;
  readonly streamsStarted: number;
  /** The same counts of the last moments; absent when none of them ever counted. */
  readonly recent?: {
    readonly seconds: number;
    readonly failureModeAllowed: number;
    readonly streamsFailed: number;
    readonly messageTimeouts: number;
    readonly streamsStarted: number;
  };
  /** control_plane.connected_state. */
  readonly controlConnected: boolean;
  readonly cdsRejected: number;
  readonly edsRejected: number;
  readonly clusters: readonly {
    readonly name: string;
    readonly hosts: number;
    readonly healthy: number;
  }[];
}

/** A router as its control interface tells it. */
export interface RouterFacts {
  readonly address: string;
  /** Why it could not be asked; then the rest is empty. */
  readonly problem?: string;
  readonly instance?: string;
  readonly peers: readonly { readonly instance: string; readonly state: string }[];
  readonly blockSizeTokens?: number;
  readonly workers: readonly WorkerFacts[];
}

/** A worker as one router sees it. */
export interface WorkerFacts {
  readonly workerId: string;
  readonly endpoint: string;
  readonly state: string;
  readonly engineBlockSizeTokens: number;
  readonly blocks: number;
  readonly reportAgeMs: number;
  readonly resyncs: number;
  readonly heldBy: readonly string[];
}

/** A process beside an engine, or the engine, asked directly. */
export interface HealthFacts {
  readonly name: string;
  readonly url: string;
  readonly problem?: string;
}

/** What an engine says of its own settings. */
export interface EngineFacts {
  readonly workerId: string;
  readonly url: string;
  /** Why it could not be asked. */
  readonly problem?: string;
  /** From vllm:cache_config_info; absent when it does not say. */
  readonly prefixCaching?: boolean;
  readonly blockSizeTokens?: number;
  /** Whether anything listens at the KV event address; absent when there is no address or it is not TCP. */
  readonly kvEventsOpen?: boolean;
  readonly kvEventsAddress?: string;
  /** Prompt tokens the engine has seen; with some, no block known and no event heard, events are off. */
  readonly promptTokens?: number;
}

/** A process that the supervisor had to start again. */
export interface RestartFacts {
  readonly name: string;
  readonly deaths: number;
  /** How it last died, such as "signal SIGKILL". */
  readonly lastDeath: string;
  readonly agoMs: number;
  readonly logFile: string;
}

/** Join refusals and clock differences that workers report. */
export interface MemberNotes {
  readonly workerId: string;
  /** How many routers refuse it now. */
  readonly refusedBy: number;
  /** Outcomes of its joins that were refusals, such as id_taken. */
  readonly refusals: readonly string[];
  /** KV events it has had from its engine since it started. */
  readonly kvEvents?: number;
  /** Router's wall clock minus the worker's, ms. */
  readonly clockOffsetMs?: number;
}

/** What a relay says of its routers. */
export interface RelayNotes {
  readonly instance: string;
  /** Routers that it is attached to, and how many there are. */
  readonly attached: number;
  readonly routers: number;
  /** How its attach streams ended that routers refused, such as unauthenticated. */
  readonly refusals: readonly string[];
}

/** A port of the configuration and who has it, when no mesh runs. */
export interface PortFacts {
  readonly problem: string;
}

/** Everything that `doctor` looks at. */
export interface DoctorFacts {
  readonly nodeVersion: string;
  readonly hostNodeVersion: string | undefined;
  readonly envoyBinary: {
    readonly path: string;
    readonly version?: string;
    readonly problem?: string;
  };
  readonly run: {
    readonly kind: "none" | "running" | "stale" | "unreadable" | "given";
    readonly text: string;
  };
  /** Permission bits of the keys file; absent when there is none. */
  readonly keysFile: { readonly path: string; readonly problem?: string } | undefined;
  readonly ports: readonly PortFacts[];
  readonly envoy: EnvoyFacts | undefined;
  readonly routers: readonly RouterFacts[];
  readonly health: readonly HealthFacts[];
  readonly engines: readonly EngineFacts[];
  readonly members: readonly MemberNotes[];
  readonly relays: readonly RelayNotes[];
  readonly restarts: readonly RestartFacts[];
  /** Tokens per mesh block; absent when not known. */
  readonly meshBlockSizeTokens: number | undefined;
}

/** Clocks further apart than this make traces and access logs hard to read. */
const clockOffsetMsMax = 500;
/** A load report older than this is stale. */
const reportAgeMsMax = 3_000;

const ok = (subject: string, text: string): Finding => ({
  severity: "ok",
  subject,
  text,
  mend: "",
});
const problem = (subject: string, text: string, mend: string): Finding => ({
  severity: "problem",
  subject,
  text,
  mend,
});
const note = (subject: string, text: string, mend: string): Finding => ({
  severity: "note",
  subject,
  text,
  mend,
});

/**
 * Judges the facts: everything that was looked at, in the order of the request's way. What is a cause of other findings
 * stands before them: an engine that does not answer, a process that dies.
 */
export function diagnose(facts: DoctorFacts): Finding[] {
  const engines = facts.engines.map((one) => ({
    isSick: isSick(one),
    findings: engineFindings(one, facts),
  }));
  const sick = engines.filter((one) => one.isSick).flatMap((one) => one.findings);
  return [
    ...installation(facts),
    ...runFindings(facts),
    ...keysFindings(facts),
    ...facts.ports.map((one) =>
      problem("ports", one.problem, "free the port or change the setting named"),
    ),
    ...sick,
    ...facts.restarts.map(restartFinding),
    ...(facts.envoy === undefined ? [] : envoyFindings(facts.envoy)),
    ...facts.routers.flatMap(routerFindings),
    ...twinFindings(facts.routers),
    ...facts.health.filter((one) => !isToldOf(one, facts.engines)).map(healthFinding),
    ...engines.filter((one) => !one.isSick).flatMap((one) => one.findings),
    ...facts.members.flatMap(memberFindings),
    ...facts.relays.map(relayFinding),
  ];
}

const isSick = (engine: EngineFacts): boolean => engine.problem !== undefined;

/** Whether the engine's own finding says the same already. */
function isToldOf(health: HealthFacts, engines: readonly EngineFacts[]): boolean {
  return engines.some(
    (engine) =>
      isSick(engine) &&
      health.problem !== undefined &&
      health.name === `engine of ${engine.workerId}`,
  );
}

/** Restarts older than this are no longer told, ms. */
const restartToldMs = 3_600_000;

function restartFinding({ name, deaths, lastDeath, agoMs, logFile }: RestartFacts): Finding {
  const times = deaths === 1 ? "once" : `${deaths} times`;
  const text = `${name} died ${times} and was started again, last ${agoText(agoMs)} ago (${lastDeath})`;
  return agoMs > restartToldMs
    ? ok("restarts", text)
    : note("restarts", text, `if nobody ended it, look at ${logFile}`);
}

function agoText(ms: number): string {
  if (ms < 120_000) return `${(ms / 1_000).toFixed(0)} s`;
  return ms < 7_200_000 ? `${(ms / 60_000).toFixed(0)} min` : `${(ms / 3_600_000).toFixed(0)} h`;
}

function installation(facts: DoctorFacts): Finding[] {
  const findings: Finding[] = [];
  const node = facts.nodeVersion.replace(/^v/, "");
  findings.push(
    isVersionAtLeast(node, "26.0.0")
      ? ok("node", `services run on Node ${node}`)
      : problem(
          "node",
          `services would run on Node ${node}, they need 26`,
          `run "npm install": the package "node" brings it`,
        ),
  );
  const { path, version, problem: missing } = facts.envoyBinary;
  if (missing !== undefined)
    findings.push(
      problem(
        "envoy",
        missing,
        missing.startsWith("KVMESH_ENVOY ")
          ? "correct KVMESH_ENVOY, or unset it to use the Envoy that set-up fetches"
          : `run "npm start" once; its set-up fetches Envoy`,
      ),
    );
  else if (version === undefined)
    findings.push(note("envoy", `${path} does not say its version`, ""));
  else findings.push(versionFinding(`Envoy at ${path}`, version));
  return findings;
}

function versionFinding(what: string, version: string): Finding {
  return isVersionAtLeast(version, envoyVersionFloor)
    ? ok("envoy", `${what} is ${version}`)
    : problem(
        "envoy",
        `${what} is ${version}, older than ${envoyVersionFloor}`,
        `use Envoy ${envoyVersionFloor} or newer: earlier ones refuse HTTP/1.1 bodies above the connection buffer`,
      );
}

function runFindings({ run }: DoctorFacts): Finding[] {
  switch (run.kind) {
    case "running":
    case "given":
      return [ok("mesh", run.text)];
    case "none":
      return [note("mesh", run.text, "")];
    case "stale":
      return [
        problem("mesh", run.text, `start it again with "kvmesh up"; the old run.json is replaced`),
      ];
    case "unreadable":
      return [problem("mesh", run.text, "remove the file, then start the mesh again")];
  }
}

function keysFindings({ keysFile }: DoctorFacts): Finding[] {
  if (keysFile === undefined) return [];
  return keysFile.problem === undefined
    ? [ok("keys", `${keysFile.path} is whole and readable by its owner alone`)]
    : [
        problem(
          "keys",
          keysFile.problem,
          `mode: chmod 600 ${keysFile.path}; content: move it away and "kvmesh up" makes a new one`,
        ),
      ];
}

function envoyFindings(envoy: EnvoyFacts): Finding[] {
  if (envoy.problem !== undefined) {
    return [problem("envoy", envoy.problem, "look at logs/envoy.log in the state folder")];
  }
  const findings: Finding[] = [];
  findings.push(
    envoy.live
      ? ok("envoy", `${envoy.url} is live`)
      : problem(
          "envoy",
          `${envoy.url} is not live`,
          "its routers must serve discovery; look at logs/envoy.log",
        ),
  );
  if (envoy.version !== undefined)
    findings.push(versionFinding("the running Envoy", envoy.version));
  findings.push(
    envoy.controlConnected
      ? ok("discovery", "Envoy is connected to a router")
      : problem(
          "discovery",
          "Envoy is connected to no router",
          "check that a router's control port answers",
        ),
  );
  if (envoy.cdsRejected + envoy.edsRejected > 0) {
    findings.push(
      problem(
        "discovery",
        `Envoy refused ${envoy.cdsRejected} cluster and ${envoy.edsRejected} endpoint updates; it keeps the last good ones`,
        "look for the reason in logs/envoy.log",
      ),
    );
  }
  for (const cluster of envoy.clusters) {
    const text = `cluster ${cluster.name}: ${cluster.healthy} of ${cluster.hosts} endpoints healthy`;
    findings.push(
      cluster.hosts > 0 && cluster.healthy === cluster.hosts
        ? ok("clusters", text)
        : problem(
            "clusters",
            text,
            "the processes behind it are down or have not joined: see engines, workers and health",
          ),
    );
  }
  findings.push(...placementFindings(envoy));
  return findings;
}

function placementFindings(envoy: EnvoyFacts): Finding[] {
  const { failureModeAllowed, streamsFailed, messageTimeouts, streamsStarted, recent } = envoy;
  if (failureModeAllowed + streamsFailed + messageTimeouts === 0) {
    return [ok("ext_proc", `all of ${streamsStarted} requests were placed`)];
  }
  const whole = `${countsText(envoy)} since Envoy's start`;
  if (recent === undefined) return [note("ext_proc", whole, "")];
  const isNow = recent.failureModeAllowed + recent.streamsFailed + recent.messageTimeouts > 0;
  const seconds = `in the last ${recent.seconds.toFixed(0)} s`;
  if (!isNow) return [note("ext_proc", `${whole}; none ${seconds}`, "")];
  return [
    problem(
      "ext_proc",
      `${countsText(recent)} ${seconds}; ${whole}`,
      "a router is down or slow: look at its event loop delay and CPU, and at logs/router-*.log",
    ),
  ];
}

function countsText(counts: Omit<NonNullable<EnvoyFacts["recent"]>, "seconds">): string {
  const { failureModeAllowed: unplaced, streamsFailed, messageTimeouts, streamsStarted } = counts;
  return `of ${streamsStarted} requests ${unplaced} went unplaced, ${streamsFailed} streams failed, ${messageTimeouts} timed out`;
}

function routerFindings(router: RouterFacts): Finding[] {
  if (router.problem !== undefined) {
    return [problem("router", router.problem, "start it, or look at its log in the state folder")];
  }
  const name = router.instance ?? router.address;
  const lost = router.peers.filter((peer) => peer.state !== "serving");
  const findings: Finding[] = [
    lost.length === 0
      ? ok("router", `${name} serves and hears all ${router.peers.length} routers`)
      : problem(
          "router",
          `${name} sees ${lost.map((peer) => `${peer.instance} ${peer.state}`).join(", ")}`,
          "check that the routers reach each other's control ports and share one mesh.keys",
        ),
  ];
  for (const worker of router.workers) findings.push(...workerFindings(name, worker));
  return findings;
}

function workerFindings(router: string, worker: WorkerFacts): Finding[] {
  const findings: Finding[] = [];
  const at = `${worker.workerId} (${worker.endpoint}) at ${router}`;
  if (worker.state !== "ready") {
    findings.push(
      problem("worker", `${at} is ${worker.state}`, "look at its engine and at the worker's log"),
    );
  } else if (worker.reportAgeMs > reportAgeMsMax) {
    findings.push(
      problem(
        "worker",
        `${at} was last heard ${(worker.reportAgeMs / 1_000).toFixed(1)} s ago`,
        "the worker or the engine's /metrics hangs; look at the worker's log",
      ),
    );
  } else {
    findings.push(ok("worker", `${at} is ready, ${worker.blocks} blocks known`));
  }
  if (worker.resyncs > 3) {
    findings.push(
      note(
        "worker",
        `${at} was resynchronised ${worker.resyncs} times`,
        "events are lost between engine and worker; raise the engine's hwm or buffer_steps",
      ),
    );
  }
  return findings;
}

function twinFindings(routers: readonly RouterFacts[]): Finding[] {
  const endpoints = new Map<string, Set<string>>();
  for (const router of routers) {
    for (const worker of router.workers) {
      const known = endpoints.get(worker.workerId) ?? new Set();
      endpoints.set(worker.workerId, known.add(worker.endpoint));
    }
  }
  return [...endpoints]
    .filter(([, addresses]) => addresses.size > 1)
    .map(([id, addresses]) =>
      problem(
        "worker",
        `two workers use the id ${id}: ${[...addresses].toSorted().join(" and ")}`,
        "give each worker an id of its own (worker.id)",
      ),
    );
}

function healthFinding(one: HealthFacts): Finding {
  return one.problem === undefined
    ? ok("health", `${one.name} at ${one.url} answers`)
    : problem(
        "health",
        `${one.name} at ${one.url}: ${one.problem}`,
        "start it, or look at its log in the state folder",
      );
}

function engineFindings(engine: EngineFacts, facts: DoctorFacts): Finding[] {
  const who = `engine of ${engine.workerId} (${engine.url})`;
  if (engine.problem !== undefined) {
    return [
      problem("engine", `${who}: ${engine.problem}`, "start the engine or correct its address"),
    ];
  }
  const findings: Finding[] = [];
  if (engine.prefixCaching === false) {
    findings.push(
      problem(
        "engine",
        `${who} runs without prefix caching: there is nothing to route to`,
        "start it with --enable-prefix-caching",
      ),
    );
  }
  const mesh = facts.meshBlockSizeTokens;
  const own = engine.blockSizeTokens;
  if (mesh !== undefined && own !== undefined && (own === 0 || mesh % own !== 0)) {
    findings.push(
      problem(
        "engine",
        `${who} has blocks of ${own} tokens, which do not divide the mesh's ${mesh}`,
        `start it with --block-size that divides ${mesh}, or set mesh.blockSizeTokens to a multiple of ${own}`,
      ),
    );
  }
  findings.push(...eventFindings(who, engine, facts));
  if (findings.length === 0) findings.push(ok("engine", `${who}: its settings suit routing`));
  return findings;
}

function eventFindings(who: string, engine: EngineFacts, facts: DoctorFacts): Finding[] {
  const mend = `start it with --kv-events-config '{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558"}' and name the address in the worker's settings`;
  if (engine.kvEventsOpen === false) {
    return [
      problem(
        "engine",
        `${who}: nothing listens for KV events at ${engine.kvEventsAddress ?? "?"}`,
        mend,
      ),
    ];
  }
  const known = facts.routers
    .flatMap((router) => router.workers)
    .filter((worker) => worker.workerId === engine.workerId);
  const blocks = Math.max(0, ...known.map((worker) => worker.blocks));
  // A cache that was reset holds no block either, but its events came.
  const events = facts.members.find((one) => one.workerId === engine.workerId)?.kvEvents ?? 0;
  const isSilent = blocks === 0 && events === 0;
  if (known.length > 0 && isSilent && (engine.promptTokens ?? 0) > 10_000) {
    return [
      problem(
        "engine",
        `${who} has read ${engine.promptTokens ?? 0} prompt tokens, but no router knows a block of it: its KV events are off or do not arrive`,
        mend,
      ),
    ];
  }
  return [];
}

/** What to do about each refusal, by the outcome in the worker's metrics. */
const refusalMends: Readonly<Record<string, string>> = {
  id_taken: "id_taken: two workers share an id, give one another worker.workerId",
  address_not_allowed:
    "address_not_allowed: add the engine's network to router.workers.allowedCidrs",
  caller_not_allowed:
    "caller_not_allowed: add the worker's own address to router.callers.membership",
  bad_proof: "bad_proof: give worker and routers the same mesh.keys (keysFile)",
  hash_seed: "hash_seed: give worker and routers the same mesh.keys (keysFile)",
  block_size: "block_size: choose a mesh block size that is a multiple of the engine's",
  incompatible: "incompatible: worker and routers must agree on block size, model and versions",
  protocol_version: "protocol_version: run one version of kvmesh",
  stale_epoch: "stale_epoch: stop the older of two workers with this id",
};

function relayFinding({ instance, attached, routers, refusals }: RelayNotes): Finding {
  const text = `${instance} is attached to ${attached} of ${routers} routers`;
  if (attached >= routers) return ok("relay", text);
  const why = refusals.length === 0 ? "" : `; refused: ${refusals.join(", ")}`;
  return problem(
    "relay",
    `${text}${why}`,
    attached === 0 && refusals.length === 0
      ? "check that the routers' control ports answer; its log says more"
      : "unauthenticated: give relay and routers the same mesh.keys (keysFile); permission_denied: add its address to router.relays.allowedCidrs; its log says more",
  );
}

function memberFindings(member: MemberNotes): Finding[] {
  const findings: Finding[] = [];
  if (member.refusedBy > 0) {
    const why = member.refusals.length === 0 ? "" : `: ${member.refusals.join(", ")}`;
    findings.push(
      problem(
        "worker",
        `${member.workerId} is refused by ${member.refusedBy} routers${why}`,
        [...member.refusals.map((kind) => refusalMends[kind] ?? kind), "its log says more"].join(
          "; ",
        ),
      ),
    );
  }
  const offset = member.clockOffsetMs;
  if (offset !== undefined && Math.abs(offset) > clockOffsetMsMax) {
    findings.push(
      note(
        "clock",
        `the clock of ${member.workerId} is ${offset.toFixed(0)} ms off the router's`,
        "set both machines' clocks by NTP: spans of one trace would not line up",
      ),
    );
  }
  return findings;
}

const marks: Readonly<Record<Severity, string>> = {
  ok: "ok     ",
  note: "note   ",
  problem: "PROBLEM",
};

/** The findings as lines, problems with how to mend them, and the sum last: of what there was to look at. */
export function doctorView(findings: readonly Finding[]): string[] {
  const lines = findings.flatMap((one) => {
    const line = `${marks[one.severity]}  ${one.subject.padEnd(9)}  ${one.text}`;
    return one.mend === "" ? [line] : [line, `${" ".repeat(20)}→ ${one.mend}`];
  });
  const problems = findings.filter((one) => one.severity === "problem").length;
  const sum =
    problems === 0 ? "nothing is wrong" : problems === 1 ? "1 problem" : `${problems} problems`;
  const isIdle = problems === 0 && findings.some((one) => one.text.startsWith("no mesh runs here"));
  return [
    ...lines,
    "",
    isIdle
      ? `${findings.length} things looked at: nothing is wrong with the installation; no mesh runs, so there was nothing of one to judge`
      : `${findings.length} things looked at: ${sum}`,
  ];
}

/** The same as a value for `--json`. */
export function doctorJson(findings: readonly Finding[]): unknown {
  return { schema: 1, healthy: findings.every((one) => one.severity !== "problem"), findings };
}
