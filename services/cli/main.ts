import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { MeshError } from "../shared/core/errors.ts";
import { parseEndpoint } from "../shared/core/endpoint.ts";
import { ConfigError } from "../shared/edge/config.ts";
import { productVersion } from "../shared/edge/log.ts";
import { placementPolicies } from "./core/demo-profile.ts";
import { unknownName } from "../shared/core/suggestion.ts";
import { exitCodes, processIo } from "./edge/command-io.ts";
import { doctorCommand, type DoctorOptions } from "./edge/doctor-command.ts";
import { envoyPrintCommand, type EnvoyPrintFlags } from "./edge/envoy-print.ts";
import { explainCommand, type ExplainOptions } from "./edge/explain-command.ts";
import { generateCommand, type GenerateCommandOptions } from "./edge/generate-command.ts";
import { replayCommand } from "./edge/replay/replay-command.ts";
import { requireRun, type MeshAddress } from "./edge/running-mesh.ts";
import { serviceCommand, type ServiceName } from "./edge/service-command.ts";
import { simCommand } from "./edge/sim-command.ts";
import { topCommand, type TopOptions } from "./edge/top-command.ts";
import { traceCommand } from "./edge/trace-command.ts";
import { upCommand } from "./edge/up/up-command.ts";
import { demoNames, type DemoName } from "./edge/up/up-demo.ts";
import type { PortChoice } from "./edge/up/mesh-setup.ts";
import { workersCommand } from "./edge/workers-command.ts";

interface UpFlags {
  readonly demo?: DemoName;
  readonly once?: boolean;
  readonly json?: boolean;
  readonly config?: string;
  readonly state?: string;
  readonly set: readonly string[];
  readonly workload: string;
  readonly rate?: number;
  readonly duration: number;
  readonly policies?: readonly string[];
  readonly workers?: number;
  readonly routers?: number;
  readonly portsBase?: PortChoice;
  readonly printConfig?: boolean;
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0) || !Number.isFinite(value)) throw new InvalidArgumentError("must be above 0");
  return value;
}

function countUpTo(max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < 1 || value > max) {
      throw new InvalidArgumentError(`must be a whole number from 1 to ${max}`);
    }
    return value;
  };
}

function portsBase(text: string): PortChoice {
  if (text === "all-free") return "all-free";
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1_024 || value > 64_000) {
    throw new InvalidArgumentError("must be all-free or a port from 1024 to 64000");
  }
  return value;
}

function policyList(text: string): string[] {
  if (text === "none") return [];
  const names = text.split(",").map((name) => name.trim());
  const known: readonly string[] = placementPolicies;
  for (const name of names) {
    if (!known.includes(name)) throw new InvalidArgumentError(unknownName("policy", name, known));
  }
  return [...new Set(names)];
}

/** Collects `host:port` values. */
function collectAddress(text: string, before: readonly string[]): string[] {
  if (parseEndpoint(text) === undefined) {
    throw new InvalidArgumentError("must be host:port, such as 127.0.0.1:9003");
  }
  return [...before, text];
}

const collect = (value: string, before: readonly string[]): string[] => [...before, value];

/** Runs an action and leaves with its exit code. */
function leave(action: Promise<number>): Promise<void> {
  return action.then((code) => {
    process.exitCode = code;
  });
}

/** Adds what every command that asks a running mesh takes. */
function reading(command: Command): Command {
  return command
    .option(
      "--router <host:port>",
      "control port of a router (default: of the mesh that runs here)",
      collectAddress,
      [],
    )
    .option("--state <folder>", "state folder of the mesh (default: .kvmesh)")
    .option("--json", "print one JSON value");
}

function upProgram(): Command {
  return new Command("up")
    .description("start a mesh on this machine and serve until Ctrl-C")
    .addOption(
      new Option(
        "--demo [name]",
        "with simulated engines, comparing first: placement policies, or whole requests with prefill/decode pairs (disagg)",
      )
        .choices([...demoNames])
        .preset("policies"),
    )
    .option("--once", "with --demo: end after the comparison")
    .option(
      "--json",
      "with --demo: the last line of stdout is the result as JSON, all else goes to stderr",
    )
    .option("--config <file>", "settings (default: kvmesh.yaml of this folder when there is one)")
    .option("--set <path=value>", "one setting under mesh, such as routers=3", collect, [])
    .option("--state <folder>", "where keys, logs and run.json are (default: .kvmesh)")
    .option("--workload <name>", "agentic, conversation, or a file", "agentic")
    .option(
      "--rate <n>",
      "times as fast as recorded (default: the workload's own), or as the rule of --demo disagg says",
      positive,
    )
    .option("--duration <seconds>", "length of the run of each policy", positive, 60)
    .option("--policies <list>", `some of ${placementPolicies.join(",")}, or none`, policyList)
    .option("--workers <n>", "simulated engines (default: the workload's own)", countUpTo(64))
    .option("--routers <n>", "routers", countUpTo(8))
    .addOption(
      new Option("--ports-base <n>", "first of the mesh's ports, or all-free for any").argParser(
        portsBase,
      ),
    )
    .option("--print-config", "print the effective settings with their sources, and end")
    .action((flags: UpFlags, command: Command) => {
      requireDemo(flags, command);
      return leave(
        upCommand(
          {
            printConfig: flags.printConfig === true,
            demo: flags.demo,
            once: flags.once === true,
            json: flags.json === true,
            config: flags.config,
            state: flags.state,
            sets: flags.set,
            workload: flags.workload,
            rate: flags.rate,
            durationS: flags.duration,
            policies: flags.policies,
            workers: flags.workers,
            routers: flags.routers,
            ports: flags.portsBase,
            startedUnixMs: startedUnixMs(),
          },
          processIo,
        ),
      );
    });
}

/** Refuses what means something with `--demo` alone, rather than let it be without effect. */
function requireDemo(flags: UpFlags, command: Command): void {
  if (flags.demo === "disagg") refuseWithPairs(flags, command);
  if (flags.demo !== undefined) return;
  const options = ["once", "json", "workload", "rate", "duration", "policies", "workers"];
  const given = options.filter((name) => command.getOptionValueSource(name) === "cli");
  if (given.length === 0) return;
  const names = given.map((name) => `--${name}`).join(", ");
  command.error(
    `error: ${names} ${given.length === 1 ? "needs" : "need"} --demo: without it there is no comparison and no simulated engine`,
  );
}

/** Refuses what has no meaning where whole requests are compared with pairs: loads and engines are the demo's own. */
function refuseWithPairs(flags: UpFlags, command: Command): void {
  const isCompared = flags.policies !== undefined && flags.policies.length > 0;
  const given = ["workload", "workers"].filter(
    (name) => command.getOptionValueSource(name) === "cli",
  );
  const refused = [...given, ...(isCompared ? ["policies"] : [])].map((name) => `--${name}`);
  if (refused.length === 0) return;
  command.error(
    `error: ${refused.join(", ")} cannot be used with --demo disagg: its loads and engines are its own, and --policies is none or left out`,
  );
}

/** When the launcher was started; now when there was none. */
function startedUnixMs(): number {
  const told = Number(process.env["KVMESH_STARTED_UNIX_MS"]);
  return told > 0 ? told : Date.now();
}

function readingPrograms(): Command[] {
  return [
    reading(new Command("explain"))
      .description("print a decision: every candidate, every cost term, what was observed")
      .argument("<which>", "last, a decision id or a request id")
      .option("--what-if <term=weight>", "who would have won with other weights", collect, [])
      .action((which: string, flags: ExplainOptions) =>
        leave(explainCommand(which, flags, processIo)),
      ),
    new Command("trace")
      .description("print a request's spans, with predicted beside observed times")
      .argument("<which>", "last, or a trace, request or decision id")
      .option("--console <url>", "the console's address (default: of the mesh that runs here)")
      .option("--state <folder>", "state folder of the mesh (default: .kvmesh)")
      .option("--json", "print one JSON value")
      .action((which: string, flags: MeshAddress & { console?: string; json?: boolean }) =>
        leave(
          traceCommand({
            target: which,
            consoleUrl: flags.console ?? consoleUrl(flags),
            json: flags.json === true,
            stdout: process.stdout,
          }),
        ),
      ),
    reading(new Command("workers"))
      .description("print the workers of every pool with their facts, and the routers")
      .action((flags: MeshAddress & { json?: boolean }) => leave(workersCommand(flags, processIo))),
    reading(new Command("top"))
      .description(
        "show workers and decisions live; with --json one JSON value a line as things change, until Ctrl-C",
      )
      .option("--once", "print one screen, or one JSON value, and end")
      .action((flags: TopOptions) => leave(topCommand(flags, processIo))),
    reading(new Command("doctor"))
      .description("look for what is wrong with the mesh, and say how to mend it")
      .option("--config <file>", "settings (default: kvmesh.yaml of this folder when there is one)")
      .action((flags: DoctorOptions) => leave(doctorCommand(flags, processIo))),
  ];
}

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) {
    throw new InvalidArgumentError("must be a number");
  }
  return value;
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError("must be a whole number");
  return value;
}

function generateProgram(): Command {
  return new Command("generate")
    .description("run one request over gRPC and print its text as it comes")
    .argument("<text>", "what to answer; - reads it from stdin")
    .option(
      "--relay <host:port>",
      "a relay's gRPC port, several, or Envoy's trusted port (default: of the mesh that runs here)",
      collectAddress,
      [],
    )
    .option("--state <folder>", "state folder of the mesh (default: .kvmesh)")
    .option("--model <name>", "model (default: the mesh's)")
    .option("--chat", "as a message of a chat instead of a text to continue")
    .option("--max-tokens <n>", "longest answer, tokens", countUpTo(1_000_000))
    .option("--temperature <n>", "0 is greedy", number)
    .option("--seed <n>", "seed of the sampling", wholeNumber)
    .option("--stop <text>", "a text that ends the answer, several", collect, [])
    .option("--tenant <name>", "whose request it is")
    .option("--session <name>", "conversation whose requests should meet the same cache")
    .option("--priority <class>", "class of the request")
    .option("--request-id <id>", "id of the request (default: made up)")
    .option("--timeout <seconds>", "deadline of the request", positive, 600)
    .option("--resume <token>", "go on with a stream that broke; all else as the first time")
    .option("--json", "print one JSON value at the end instead of the text")
    .action((text: string, flags: GenerateCommandOptions) =>
      leave(generateCommand(text, flags, processIo)),
    );
}

function envoyProgram(): Command {
  const print = new Command("print")
    .description("print configuration for an Envoy that you run")
    .option("--filter", "parts to paste into a configuration that exists (the default)")
    .option("--full", "a whole configuration")
    .option("--duplex", "with FULL_DUPLEX_STREAMED bodies")
    .option("--router <host:port>", "hot port of a router, several", gather)
    .option("--control <host:port>", "control port of a router, several", gather)
    .option("--otlp <host:port>", "OTLP over gRPC, or off")
    .option("--pool <id>", "default pool")
    .option(
      "--model <name>",
      "model that the default pool serves when no router answers, several",
      gather,
    )
    .option("--fail-closed", "refuse requests when no router answers")
    .action((flags: EnvoyPrintFlags) => {
      process.exitCode = envoyPrintCommand(flags, processIo);
    });
  return new Command("envoy")
    .description("configuration for Envoy")
    .addCommand(print.exitOverride());
}

const gather = (value: string, before: readonly string[] | undefined): string[] => [
  ...(before ?? []),
  value,
];

function consoleUrl(address: MeshAddress): string {
  const url = requireRun(address).urls.console;
  if (url !== undefined) return url;
  throw new MeshError(
    "not_found",
    "this mesh runs without a console: name one with --console <url>",
  );
}

function servicePrograms(): Command[] {
  const services: Readonly<Record<ServiceName, string>> = {
    router: "run one router in the foreground, with --processes <n> on several cores",
    worker: "run one worker in the foreground",
    relay: "run one relay in the foreground",
    console: "run the console in the foreground",
    engine: "run one simulated engine in the foreground",
  };
  return Object.entries(services).map(([name, description]) =>
    new Command(name)
      .description(
        `${description}; takes the service's own flags (--config, --set, --print-config)`,
      )
      .argument("[flags...]")
      .allowUnknownOption()
      .helpOption(false)
      .passThroughOptions()
      .action((flags: readonly string[]) =>
        leave(serviceCommand(name as ServiceName, flags, processIo)),
      ),
  );
}

/** The `kvmesh` command. */
export function program(): Command {
  const kvmesh = new Command("kvmesh")
    .description("KV-aware routing and orchestration above LLM inference engines")
    .version(productVersion())
    .enablePositionalOptions()
    .showHelpAfterError("(--help says more)")
    .exitOverride();
  const commands = [
    upProgram(),
    ...readingPrograms(),
    generateProgram(),
    replayCommand(),
    simCommand(),
    envoyProgram(),
    ...servicePrograms(),
  ];
  for (const command of commands) {
    kvmesh.addCommand(command.exitOverride());
  }
  return kvmesh;
}

/** Runs the command line; sets the exit code: 0 done, 1 failed, 2 wrong usage or settings. */
export async function main(argv: readonly string[]): Promise<void> {
  try {
    await program().parseAsync(argv);
  } catch (error) {
    process.exitCode = report(error);
  }
}

function report(error: unknown): number {
  // commander has printed its message; only help and version end with 0.
  if (error instanceof CommanderError)
    return error.exitCode === 0 ? exitCodes.done : exitCodes.usage;
  if (error instanceof ConfigError) {
    for (const problem of error.problems) processIo.err(problem);
    return exitCodes.usage;
  }
  if (error instanceof MeshError) {
    processIo.err(`kvmesh: ${error.message}`);
    return error.code === "invalid_request" ? exitCodes.usage : exitCodes.failed;
  }
  processIo.err(error instanceof Error ? (error.stack ?? error.message) : String(error));
  return exitCodes.failed;
}

// A reader that has seen enough (`| head`) is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(exitCodes.done);
});
await main(process.argv);
// Channels to routers and the launcher's IPC channel must not keep a finished command alive.
process.disconnect?.();
