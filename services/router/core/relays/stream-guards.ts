import type { WorkerId } from "../../../shared/core/ids.ts";
import type { GuardSettings } from "../../../shared/core/placement-token/placement.ts";
import type { Members } from "../membership/members.ts";
import { isRelayEngine } from "../placement/pairs/pair-members.ts";
import type { DecisionGuard, GuardAsk, GuardMode } from "./decision-guard.ts";
import type { UnguardedReason } from "./guard-fields.ts";
import type { Relay, RelayRoster } from "./relay-roster.ts";

/** Settings of guards. */
export interface GuardOptions {
  readonly mode: GuardMode;
  /** The mode of single pools, by id. */
  readonly pools: ReadonlyMap<string, GuardMode>;
  readonly settings: GuardSettings;
}

/** Guards as they are when nothing is set. */
export const guardDefaults: GuardOptions = {
  mode: "pairs",
  pools: new Map(),
  settings: { freezeItlMultiple: 20, freezeMsMin: 400, migrationsMax: 3 },
};

/** Engines that tell the ids of the tokens that they generate, without which nothing can be continued. */
const tellsTokenIds: ReadonlySet<string> = new Set(["vllm"]);

/** Who guards a stream. */
export interface PickedGuard {
  readonly choice: DecisionGuard;
  readonly relays: readonly Relay[];
}

/** Finds relays that guard streams of requests that run whole. */
export class StreamGuards {
  readonly #relays: RelayRoster;
  readonly #members: Members;

  constructor(of: { readonly relays: RelayRoster; readonly members: Members }) {
    this.#relays = of.relays;
    this.#members = of.members;
  }

  /**
   * Relays for a stream from this worker, at most `max`, or why there are none; `undefined` when it is not to pass one.
   * `requestId` decides among relays that are equally busy.
   */
  pick(
    ask: GuardAsk,
    of: { readonly requestId: string; readonly worker: WorkerId; readonly max: number },
  ): PickedGuard | undefined {
    if (ask.mode !== "relay") return undefined;
    if (ask.off !== "") return unguarded(ask.off);
    const engine = this.#members.get(of.worker)?.facts?.engineName ?? "";
    if (!isRelayEngine(engine) || !tellsTokenIds.has(engine)) return unguarded("engine");
    const relays = this.#relays.pick(of.requestId, engine, of.max);
    if (relays.length === 0) return unguarded("no_relay");
    const names = relays.map(({ facts }) => facts.instance);
    return { choice: { off: "", relays: names }, relays };
  }

  /** A stream was given to the first of these. */
  given([first]: readonly Relay[]): void {
    if (first !== undefined) this.#relays.given(first.facts.instance);
  }
}

function unguarded(off: UnguardedReason): PickedGuard {
  return { choice: { off, relays: [] }, relays: [] };
}
