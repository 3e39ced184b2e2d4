import { layOutPorts, type PortLayout } from "../core/mesh-ports.ts";
import { relaysWanted } from "../core/relay-count.ts";
import { diagnose, doctorJson, doctorView } from "../core/doctor-report.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";
import { probe } from "./doctor-probe.ts";
import type { MeshAddress } from "./running-mesh.ts";
import type { WantedPort } from "./up/port-check.ts";
import { readUpSettings } from "./up/up-settings.ts";

/** Options of `kvmesh doctor`. */
export interface DoctorOptions extends MeshAddress {
  readonly config?: string | undefined;
  readonly json?: boolean | undefined;
}

/** `kvmesh doctor`: says what is wrong and how to mend it. Exit code 1 when something is. */
export async function doctorCommand(options: DoctorOptions, io: CommandIo): Promise<number> {
  const { mesh, sections } = readUpSettings({
    file: options.config,
    cwd: process.cwd(),
    env: process.env,
    sets: [],
  });
  const relays = relaysWanted({
    configured: mesh.relays,
    router: sections.router,
    worker: sections.worker,
    members: mesh.workers.map(({ settings }) => settings),
  });
  const facts = await probe({
    ...options,
    blockSizeTokens: mesh.blockSizeTokens,
    hostNodeVersion: process.env["KVMESH_HOST_NODE"],
    wantedPorts: fixedPorts(mesh.host, mesh.ports, { routers: mesh.routers, relays }),
  });
  const findings = diagnose(facts);
  if (options.json === true) io.out(JSON.stringify(doctorJson(findings)));
  else for (const line of doctorView(findings)) io.out(line);
  return findings.some((one) => one.severity === "problem") ? exitCodes.failed : exitCodes.done;
}

/** Ports that every mesh of these settings needs. */
function fixedPorts(
  host: string,
  layout: PortLayout,
  counts: { readonly routers: number; readonly relays: number },
): WantedPort[] {
  const ports = layOutPorts(layout, { ...counts, engines: 0, workers: 0 });
  const one = (process: string, name: keyof PortLayout): WantedPort => ({
    host,
    port: layout[name],
    process,
    setting: `mesh.ports.${name}`,
  });
  return [
    one("envoy", "envoyPublic"),
    one("envoy", "envoyTrusted"),
    one("envoy", "envoyAdmin"),
    one("console", "consoleWeb"),
    one("console", "otlpGrpc"),
    one("console", "otlpHttp"),
    ...ports.routers.flatMap((router, index) =>
      (["hot", "control", "http"] as const).map((kind) => ({
        host,
        port: router[kind],
        process: `router-${index}`,
        setting: `mesh.ports.router${kind.replace(/^./, (letter) => letter.toUpperCase())}`,
      })),
    ),
    ...ports.relays.flatMap((relay, index) =>
      (["h2", "http1", "metrics"] as const).map((kind) => ({
        host,
        port: relay[kind],
        process: `relay-${index}`,
        setting: `mesh.ports.relay${kind.replace(/^./, (letter) => letter.toUpperCase())}`,
      })),
    ),
  ];
}
