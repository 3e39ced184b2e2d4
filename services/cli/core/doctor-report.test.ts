import { describe, expect, test } from "vitest";
import {
  diagnose,
  doctorJson,
  doctorView,
  type DoctorFacts,
  type EngineFacts,
  type EnvoyFacts,
  type RouterFacts,
} from "./doctor-report.ts";

const envoy: EnvoyFacts = {
  url: "http://127.0.0.1:9901",
  version: "1.40.0",
  live: true,
  failureModeAllowed: 0,
  streamsFailed: 0,
  messageTimeouts: 0,
  streamsStarted: 17,
  controlConnected: true,
  cdsRejected: 0,
  edsRejected: 0,
  clusters: [{ name: "pool-default", hosts: 1, healthy: 1 }],
};

const router: RouterFacts = {
  address: "127.0.0.1:9003",
  instance: "router-0",
  peers: [{ instance: "router-0", state: "serving" }],
  workers: [
    {
      workerId: "w0",
      endpoint: "127.0.0.1:8100",
      state: "ready",
      engineBlockSizeTokens: 16,
      blocks: 100,
      reportAgeMs: 100,
      resyncs: 0,
      heldBy: ["router-0"],
    },
  ],
};

const engine: EngineFacts = {
  workerId: "w0",
  url: "http://127.0.0.1:8100",
  prefixCaching: true,
  blockSizeTokens: 16,
  kvEventsOpen: true,
  kvEventsAddress: "tcp://127.0.0.1:8200",
  promptTokens: 20_000,
};

function facts(over: Partial<DoctorFacts> = {}): DoctorFacts {
  return {
    nodeVersion: "v26.10.0",
    hostNodeVersion: undefined,
    envoyBinary: { path: "/envoy", version: "1.40.0" },
    run: { kind: "running", text: "runs, pid 1" },
    keysFile: { path: "/state/mesh.keys" },
    ports: [],
    envoy,
    routers: [router],
    health: [{ name: "console", url: "http://127.0.0.1:8088/healthz" }],
    engines: [engine],
    relays: [],
    members: [{ workerId: "w0", refusedBy: 0, refusals: [], clockOffsetMs: 2 }],
    restarts: [],
    meshBlockSizeTokens: 32,
    ...over,
  };
}

const problemsOf = (over: Partial<DoctorFacts>): string[] =>
  diagnose(facts(over))
    .filter((one) => one.severity === "problem")
    .map((one) => `${one.text} → ${one.mend}`);

const quiet = {
  seconds: 2,
  failureModeAllowed: 0,
  streamsFailed: 0,
  messageTimeouts: 0,
  streamsStarted: 5,
};

const worker = router.workers[0]!;

describe("diagnose", () => {
  test("finds nothing wrong with a healthy mesh and says what it looked at", () => {
    const findings = diagnose(facts());
    expect(findings.every((one) => one.severity === "ok")).toBe(true);
    expect(findings.length).toBeGreaterThan(8);
    expect(doctorView(findings).at(-1)).toMatch(/things looked at: nothing is wrong$/);
    expect(doctorJson(findings)).toMatchObject({ schema: 1, healthy: true });
  });

  test.each<[string, Partial<DoctorFacts>, RegExp]>([
    ["an old Node", { nodeVersion: "v20.1.0" }, /Node 20.1.0, they need 26.*npm install/],
    [
      "a wrong KVMESH_ENVOY",
      { envoyBinary: { path: "/x", problem: "KVMESH_ENVOY names /x, which does not exist" } },
      /names \/x.* → correct KVMESH_ENVOY, or unset it/,
    ],
    [
      "a caller that a router does not take",
      { members: [{ workerId: "w0", refusedBy: 1, refusals: ["caller_not_allowed"] }] },
      /caller_not_allowed → .*router\.callers\.membership/,
    ],
    ["an old Envoy", { envoyBinary: { path: "/e", version: "1.36.4" } }, /older than 1.37.0/],
    [
      "no Envoy",
      { envoyBinary: { path: "", problem: "no Envoy at /x" } },
      /no Envoy at .*npm start/,
    ],
    ["a dead mesh", { run: { kind: "stale", text: "died" } }, /died.*kvmesh up/],
    [
      "keys that others can read",
      { keysFile: { path: "/k", problem: "mode 0644" } },
      /mode 0644.*chmod 600 \/k/,
    ],
    ["a taken port", { ports: [{ problem: "port 8080 is in use by nginx, pid 7" }] }, /nginx/],
    [
      "unplaced requests",
      { envoy: { ...envoy, failureModeAllowed: 3, recent: { ...quiet, failureModeAllowed: 1 } } },
      /of 5 requests 1 went unplaced.* in the last 2 s; of 17 requests 3 went unplaced/,
    ],
    [
      "message timeouts",
      { envoy: { ...envoy, messageTimeouts: 2, recent: { ...quiet, messageTimeouts: 2 } } },
      /2 timed out in the last/,
    ],
    ["no discovery", { envoy: { ...envoy, controlConnected: false } }, /connected to no router/],
    [
      "refused discovery",
      { envoy: { ...envoy, edsRejected: 1 } },
      /refused 0 cluster and 1 endpoint/,
    ],
    [
      "an endpoint missing in Envoy",
      { envoy: { ...envoy, clusters: [{ name: "pool-default", hosts: 2, healthy: 1 }] } },
      /1 of 2 endpoints healthy/,
    ],
    ["a router that does not answer", { routers: [{ ...router, problem: "refused" }] }, /refused/],
    [
      "a lost peer",
      { routers: [{ ...router, peers: [{ instance: "router-1", state: "lost" }] }] },
      /router-0 sees router-1 lost/,
    ],
    [
      "a worker that is away",
      { routers: [{ ...router, workers: [{ ...worker, state: "away" }] }] },
      /w0 .* at router-0 is away/,
    ],
    [
      "a worker that hangs",
      { routers: [{ ...router, workers: [{ ...worker, reportAgeMs: 9_000 }] }] },
      /last heard 9.0 s ago/,
    ],
    [
      "a service that is down",
      { health: [{ name: "console", url: "u", problem: "ECONNREFUSED" }] },
      /console at u: ECONNREFUSED/,
    ],
    [
      "no prefix caching",
      { engines: [{ ...engine, prefixCaching: false }] },
      /--enable-prefix-caching/,
    ],
    [
      "a block size that does not divide",
      { engines: [{ ...engine, blockSizeTokens: 48 }] },
      /blocks of 48 tokens, which do not divide the mesh's 32/,
    ],
    [
      "no KV events",
      { engines: [{ ...engine, kvEventsOpen: false }] },
      /nothing listens for KV events at tcp:\/\/127.0.0.1:8200.*--kv-events-config/,
    ],
    [
      "KV events that do not arrive",
      { routers: [{ ...router, workers: [{ ...worker, blocks: 0 }] }] },
      /has read 20000 prompt tokens, but no router knows a block/,
    ],
    [
      "a refused worker",
      { members: [{ workerId: "w0", refusedBy: 2, refusals: ["id_taken"] }] },
      /w0 is refused by 2 routers: id_taken/,
    ],
  ])("finds %s and says how to mend it", (_, over, expected) => {
    const problems = problemsOf(over);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(expected);
    expect(problems[0]).toMatch(/→ .+/);
  });

  test("finds two workers with one id across routers", () => {
    const other = { ...router, workers: [{ ...worker, endpoint: "127.0.0.1:8101" }] };
    expect(problemsOf({ routers: [router, other] })).toEqual([
      expect.stringContaining("two workers use the id w0: 127.0.0.1:8100 and 127.0.0.1:8101"),
    ]);
  });

  test("notes requests that went unplaced long ago without calling the mesh sick", () => {
    const findings = diagnose(
      facts({ envoy: { ...envoy, failureModeAllowed: 49, recent: quiet } }),
    );
    expect(findings.filter((one) => one.severity !== "ok").map((one) => one.text)).toEqual([
      "of 17 requests 49 went unplaced, 0 streams failed, 0 timed out since Envoy's start; none in the last 2 s",
    ]);
    expect(doctorJson(findings)).toMatchObject({ healthy: true });
  });

  test("does not take a cache that was reset for events that are off", () => {
    const empty = { routers: [{ ...router, workers: [{ ...worker, blocks: 0 }] }] };
    const heard = { workerId: "w0", refusedBy: 0, refusals: [], kvEvents: 12 };
    expect(problemsOf({ ...empty, members: [heard] })).toEqual([]);
    expect(problemsOf({ ...empty, members: [{ ...heard, kvEvents: 0 }] })).toHaveLength(1);
  });

  test("tells restarts, for an hour as a note", () => {
    const death = {
      name: "router-0",
      deaths: 2,
      lastDeath: "signal SIGKILL",
      agoMs: 12_000,
      logFile: "/l",
    };
    const told = diagnose(facts({ restarts: [death, { ...death, agoMs: 9_000_000 }] })).filter(
      (one) => one.subject === "restarts",
    );
    expect(told.map((one) => one.severity)).toEqual(["note", "ok"]);
    expect(told[0]?.text).toBe(
      "router-0 died 2 times and was started again, last 12 s ago (signal SIGKILL)",
    );
    expect(told[1]?.text).toContain("last 3 h ago");
  });

  test("names an engine that does not answer once, before all that follows from it", () => {
    const problems = problemsOf({
      engines: [{ workerId: "w0", url: "http://127.0.0.1:1", problem: "connection refused" }],
      health: [
        { name: "engine of w0", url: "http://127.0.0.1:1/health", problem: "connection refused" },
      ],
      envoy: { ...envoy, live: false, clusters: [{ name: "pool-default", hosts: 0, healthy: 0 }] },
      routers: [{ ...router, workers: [] }],
    });
    expect(problems[0]).toMatch(/^engine of w0 \(http:\/\/127.0.0.1:1\): connection refused/);
    expect(problems.filter((one) => one.includes("connection refused"))).toHaveLength(1);
    expect(problems.length).toBeGreaterThan(1);
  });

  test("without a mesh says that there was none to judge", () => {
    const findings = diagnose({
      ...facts({ run: { kind: "none", text: "no mesh runs here (…)" }, routers: [], engines: [] }),
      envoy: undefined,
    });
    expect(doctorView(findings).at(-1)).toMatch(/installation; no mesh runs/);
  });

  test("notes clocks that are apart without calling the mesh sick", () => {
    const findings = diagnose(
      facts({ members: [{ workerId: "w0", refusedBy: 0, refusals: [], clockOffsetMs: -900 }] }),
    );
    expect(findings.filter((one) => one.severity === "note").map((one) => one.subject)).toEqual([
      "clock",
    ]);
    expect(doctorJson(findings)).toMatchObject({ healthy: true });
  });
});

test("says to how many routers a relay is attached, and what to do about refusals", () => {
  const relay = { instance: "relay-0", attached: 2, routers: 2, refusals: ["unavailable"] };
  const of = (over: Partial<typeof relay>) =>
    diagnose(facts({ relays: [{ ...relay, ...over }] })).find((one) => one.subject === "relay");
  expect(of({})).toMatchObject({ severity: "ok", text: "relay-0 is attached to 2 of 2 routers" });
  const refused = of({ attached: 1, refusals: ["permission_denied"] });
  expect(refused?.severity).toBe("problem");
  expect(refused?.text).toContain("1 of 2 routers; refused: permission_denied");
  expect(refused?.mend).toContain("router.relays.allowedCidrs");
  expect(of({ attached: 0, refusals: [] })?.mend).toContain("control ports");
});
