import { spawn } from "node:child_process";
import { join } from "node:path";
import { MeshError } from "../../shared/core/errors.ts";
import { unknownName } from "../../shared/core/suggestion.ts";
import type { PlannedService } from "../core/mesh-plan.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";
import { Interrupts } from "./interrupts.ts";
import { entryPoints, packageRoot, serviceNode } from "./up/mesh.ts";

/** Services with a command of their own. */
export type ServiceName = PlannedService;

/** What services take, in the order of the help. */
const serviceFlags = ["--config", "--set", "--print-config", "--version", "--help"] as const;

/** Flags that are followed by a value. */
const withValue: readonly string[] = ["--config", "--set", "--processes"];

/** The help of one service's command. */
export function serviceHelp(service: ServiceName): string {
  const rows: [string, string][] = [
    ["--config <file>", "settings (default: kvmesh.yaml of this folder when there is one)"],
    [
      "--set <path=value>",
      `one setting of the section ${service}, several; --print-config lists them`,
    ],
    ...((service === "router"
      ? [["--processes <n>", "run it as n processes, one per core; short for --set processes=n"]]
      : []) as [string, string][]),
    ["--print-config", "print the effective settings with their sources, and end"],
    ["--version", "print the version, and end"],
    ["-h, --help", "print this, and end"],
  ];
  const about = service === "engine" ? "one simulated engine" : `one ${service}`;
  return [
    `Usage: kvmesh ${service} [options]`,
    "",
    `run ${about} in the foreground, until Ctrl-C`,
    "",
    "Options:",
    ...rows.map(([flag, text]) => `  ${flag.padEnd(20)} ${text}`),
  ].join("\n");
}

/** Fails with `invalid_request` for a flag that the service does not have. */
export function requireKnownFlags(service: ServiceName, flags: readonly string[]): void {
  const known = [...serviceFlags, ...(service === "router" ? ["--processes"] : [])];
  for (let at = 0; at < flags.length; at++) {
    const flag = flags[at] ?? "";
    const [name = ""] = flag.split("=", 1);
    if (!known.includes(name)) {
      const setting = flag.replace(/^-+/, "").replace(/=.*$/, "");
      const hint = flag.startsWith("--")
        ? `; a setting is given as --set ${setting}=value, and --print-config lists them`
        : "";
      throw new MeshError(
        "invalid_request",
        `${service}: ${unknownName("option", flag, known)}${hint}`,
      );
    }
    if (!withValue.includes(flag)) continue;
    at++;
    if (flags[at] === undefined) {
      throw new MeshError("invalid_request", `${service}: ${flag} needs a value`);
    }
  }
}

/** `--processes n` of a router is short for its setting. */
function withoutShortForms(service: ServiceName, flags: readonly string[]): string[] {
  if (service !== "router") return [...flags];
  return flags.flatMap((flag, index) => {
    if (flag.startsWith("--processes=")) return ["--set", flag.slice(2)];
    if (flag === "--processes") return [];
    return flags[index - 1] === "--processes" ? ["--set", `processes=${flag}`] : [flag];
  });
}

/**
 * Runs one service in the foreground with its own flags and resolves to its exit code. It gets its own process group
 * and one signal each, so that Ctrl-C is not heard twice, and ends when this process is gone.
 */
export async function serviceCommand(
  service: ServiceName,
  flags: readonly string[],
  io: CommandIo,
): Promise<number> {
  if (flags.includes("--help") || flags.includes("-h")) {
    io.out(serviceHelp(service));
    return exitCodes.done;
  }
  requireKnownFlags(service, flags);
  const [main, ...words] = entryPoints[service];
  const child = spawn(
    serviceNode,
    [join(packageRoot, main), ...words, ...withoutShortForms(service, flags)],
    {
      stdio: ["inherit", "inherit", "inherit", "ipc"],
      detached: true,
    },
  );
  const interrupts = new Interrupts(() => child.kill("SIGKILL"));
  interrupts.signal.addEventListener("abort", () => {
    child.kill(interrupts.cause === "SIGINT" ? "SIGINT" : "SIGTERM");
  });
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", (code, signal) => {
        resolve(code ?? (signal === "SIGINT" ? 130 : 143));
      });
    });
  } finally {
    interrupts.release();
  }
}
