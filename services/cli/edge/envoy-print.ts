import {
  defaultOptions,
  findOptionProblems,
  type EnvoyOptions,
  type HostPort,
} from "../../../envoy/options.ts";
import { printFilter, printFull } from "../../../envoy/print.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";

/** Flags of `kvmesh envoy print`. */
export interface EnvoyPrintFlags {
  /** Parts for an Envoy that already runs; what is printed without any flag. */
  readonly filter?: boolean | undefined;
  /** A whole configuration. */
  readonly full?: boolean | undefined;
  /** Either one with FULL_DUPLEX_STREAMED bodies. */
  readonly duplex?: boolean | undefined;
  /** Hot ports of the routers, `host:port` each; the demo's when absent. */
  readonly router?: readonly string[] | undefined;
  /** Control ports of the routers, `host:port` each; the demo's when absent. */
  readonly control?: readonly string[] | undefined;
  /** OTLP over gRPC, `host:port`, or `off`; the demo's console when absent. */
  readonly otlp?: string | undefined;
  /** Id of the default pool. */
  readonly pool?: string | undefined;
  /** Models that the default pool serves when no router answers. */
  readonly model?: readonly string[] | undefined;
  /** Refuse requests when no router answers. */
  readonly failClosed?: boolean | undefined;
}

/** Reads `host:port` and notes what is wrong with it. */
function readAddress(flag: string, text: string, problems: string[]): HostPort {
  const address = parseEndpoint(text);
  if (address === undefined) {
    problems.push(`--${flag} ${text}: must be host:port with a port of 1 to 65535`);
    return { host: "127.0.0.1", port: 1 };
  }
  return address;
}

function readOptions(flags: EnvoyPrintFlags, problems: string[]): EnvoyOptions {
  const addresses = (flag: "router" | "control", fallback: readonly HostPort[]) =>
    flags[flag]?.map((text) => readAddress(flag, text, problems)) ?? fallback;
  const otlp =
    flags.otlp === undefined
      ? defaultOptions.otlp
      : flags.otlp === "off"
        ? undefined
        : readAddress("otlp", flags.otlp, problems);
  const options: EnvoyOptions = {
    ...defaultOptions,
    routers: addresses("router", defaultOptions.routers),
    controls: addresses("control", defaultOptions.controls),
    otlp,
    bodyMode: flags.duplex === true ? "duplex" : "buffered",
    defaultPool: {
      id: flags.pool ?? defaultOptions.defaultPool.id,
      models: flags.model ?? [],
      failOpen: flags.failClosed !== true,
    },
  };
  if (options.defaultPool.models.some((model) => model.trim() === "")) {
    problems.push("--model: must be the name of a model, got an empty text");
  }
  problems.push(...findOptionProblems(options));
  return options;
}

/**
 * `kvmesh envoy print`: writes configuration for an Envoy to stdout, as YAML with comments on what to change. Wrong
 * flags are all named on stderr, exit code 2.
 */
export function envoyPrintCommand(flags: EnvoyPrintFlags, io: CommandIo): number {
  const problems: string[] = [];
  if (flags.filter === true && flags.full === true) {
    problems.push("--filter and --full: choose one");
  }
  const options = readOptions(flags, problems);
  if (problems.length > 0) {
    for (const problem of problems) io.err(problem);
    return exitCodes.usage;
  }
  if (options.defaultPool.failOpen && options.defaultPool.models.length === 0) {
    io.err(
      "note: without --model no request is served while every router is down; name the default pool's models",
    );
  }
  const text = flags.full === true ? printFull(options) : printFilter(options);
  io.out(text.trimEnd());
  return exitCodes.done;
}
