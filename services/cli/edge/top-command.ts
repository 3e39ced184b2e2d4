import { realClock } from "../../shared/edge/clock.ts";
import { toJson } from "../core/explain-view.ts";
import { TopModel } from "../core/top-view.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";
import { Interrupts } from "./interrupts.ts";
import type { RouterClient } from "./router-client.ts";
import { connectRouters, type MeshAddress } from "./running-mesh.ts";

/** Options of `kvmesh top`. */
export interface TopOptions extends MeshAddress {
  /** Print one screen and end. */
  readonly once?: boolean | undefined;
  /** One JSON value a line: topologies and decisions as they come. */
  readonly json?: boolean | undefined;
}

/** Time between two screens, ms. */
const screenMs = 500;
/** How long `--once` gathers decisions, ms. */
const onceMs = 1_000;

const enterScreen = "\u001b[?1049h\u001b[?25l";
const leaveScreen = "\u001b[?25h\u001b[?1049l";
const redraw = "\u001b[H";
const clearLine = "\u001b[K";
const clearBelow = "\u001b[J";

/** `kvmesh top`: live workers and decisions, until Ctrl-C. */
export async function topCommand(options: TopOptions, io: CommandIo): Promise<number> {
  const routers = connectRouters(options);
  const interrupts = new Interrupts(() => process.exit(130));
  try {
    // Says at once when no router answers.
    const first = await routers.topology();
    if (options.json === true) {
      await streamJson(routers, {
        io,
        signal: interrupts.signal,
        once: options.once === true,
        first,
      });
      return exitCodes.done;
    }
    const model = new TopModel();
    model.topology(first);
    const ended = new AbortController();
    const signal = AbortSignal.any([interrupts.signal, ended.signal]);
    const watched = watch(routers, model, signal);
    watched.catch(() => {
      ended.abort();
    });
    const live = options.once !== true && process.stdout.isTTY;
    if (live) await drawUntil(model, signal);
    else await realClock.sleep(onceMs, signal).catch(() => undefined);
    ended.abort();
    if (!live)
      for (const line of model.lines({ columns: 200, rows: 60 }, realClock.now())) io.out(line);
    await watched;
    return exitCodes.done;
  } finally {
    interrupts.release();
    routers.close();
  }
}

async function watch(routers: RouterClient, model: TopModel, signal: AbortSignal): Promise<void> {
  await Promise.all([
    routers.watchTopology((topology) => {
      model.topology(topology);
    }, signal),
    routers.watchPlacements(({ decision, skipped }) => {
      if (decision !== undefined) model.decided(decision, skipped, realClock.now());
    }, signal),
  ]);
}

async function drawUntil(model: TopModel, signal: AbortSignal): Promise<void> {
  process.stdout.write(enterScreen);
  try {
    while (!signal.aborted) {
      const { columns, rows } = process.stdout;
      const lines = model.lines({ columns, rows: rows - 1 }, realClock.now());
      process.stdout.write(
        redraw + lines.map((line) => `${line}${clearLine}`).join("\n") + clearBelow,
      );
      await realClock.sleep(screenMs, signal).catch(() => undefined);
    }
  } finally {
    process.stdout.write(leaveScreen);
  }
}

async function streamJson(
  routers: RouterClient,
  options: {
    readonly io: CommandIo;
    readonly signal: AbortSignal;
    readonly once: boolean;
    readonly first: unknown;
  },
): Promise<void> {
  const { io } = options;
  if (options.once) {
    io.out(JSON.stringify(toJson({ schema: 1, topology: options.first })));
    return;
  }
  await Promise.all([
    routers.watchTopology((topology) => {
      io.out(JSON.stringify(toJson({ schema: 1, topology })));
    }, options.signal),
    routers.watchPlacements((placement) => {
      io.out(JSON.stringify(toJson({ schema: 1, placement })));
    }, options.signal),
  ]);
}
