import { join } from "node:path";
import { BenchChild } from "./child-process.ts";
import type { ExchangeMode } from "./ext-proc-messages.ts";
import type {
  Arrivals,
  Prepared,
  PrepareOrder,
  RunOrder,
  RunResult,
  Served,
} from "./load-generator.ts";

/** The share of a request's bytes that nobody has seen, about; fixes how many requests a text budget gives. */
const unseenShare = 0.2;
/** Requests of one cell and round at least, so that start and end of a round weigh little; and at most. */
const requestsMin = 24;
const requestsMax = 1_500;

/** What is sent to. */
export interface LoadTarget {
  readonly name: string;
  readonly address: string;
  /** Whether it wants access-log records of what it placed. */
  readonly wantsRecords: boolean;
}

/** Prompts placed on a worker, as the generator tells. */
export type ServedPrompts = Served["prompts"];

/** The load generator, a process of its own, with an account of the text that it has used up. */
export class RouterLoad {
  readonly text = { bytes: 0, unseenBytes: 0, prompts: 0, sharing: 0, wraps: 0 };
  readonly #generator: BenchChild;
  #onServed: ((prompts: ServedPrompts) => void) | undefined;

  private constructor(keysFile: string) {
    this.#generator = new BenchChild(join(import.meta.dirname, "load-generator.ts"), {
      name: "load generator",
      args: [keysFile],
      onMessage: (message) => this.#onServed?.((message as Served).prompts),
    });
  }

  /** Starts it; hashes prompts with the seed of that keys file. */
  static async start(keysFile: string): Promise<RouterLoad> {
    const load = new RouterLoad(keysFile);
    await load.#generator.answer("ready");
    return load;
  }

  /** Makes prompts that use up about `megabytes` of text; returns how many. */
  async prepare(sizeKb: number, megabytes: number): Promise<number> {
    const wanted = Math.round((megabytes * 1e6) / (sizeKb * 1_024 * unseenShare));
    const count = Math.max(requestsMin, Math.min(requestsMax, wanted));
    const order: PrepareOrder = { kind: "prepare", bodyBytes: sizeKb * 1_024, count };
    const prepared = await this.#generator.ask<Prepared>(order, "prepared");
    const { text } = this;
    text.bytes += prepared.bytes;
    text.unseenBytes += prepared.unseenBytes;
    text.prompts += prepared.count;
    text.sharing += prepared.sharingCount;
    text.wraps = prepared.textWraps;
    return count;
  }

  /** Sends the first `count` prepared prompts. Rejects when one fails. `onServed` hears which worker got which. */
  async send(
    target: LoadTarget,
    how: { readonly mode: ExchangeMode; readonly count: number; readonly arrivals: Arrivals },
    onServed?: (prompts: ServedPrompts) => void,
  ): Promise<RunResult> {
    this.#onServed = onServed;
    const { address, wantsRecords } = target;
    const order: RunOrder = { kind: "run", target: address, ...how, isRouter: wantsRecords };
    const result = await this.#generator.ask<RunResult>(order, "ran");
    if (result.failures > 0) {
      throw new Error(
        `${target.name} ${how.mode}: ${result.failures.toString()} of ${how.count.toString()} requests failed, ` +
          `first: ${result.failure}`,
      );
    }
    return result;
  }

  async stop(): Promise<void> {
    await this.#generator.stop();
  }
}
