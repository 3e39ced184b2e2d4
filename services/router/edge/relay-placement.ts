import { createHash, createHmac } from "node:crypto";
import type { Clock } from "../../shared/core/clock.ts";
import type { WorkerId } from "../../shared/core/ids.ts";
import type {
  GuardSettings,
  LegRole,
  Placement,
  PlacementLeg,
} from "../../shared/core/placement-token/placement.ts";
import { signPlacement, type TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import type { NamedKey } from "../../shared/edge/keys.ts";
import type { Decision } from "../core/decisions/decision.ts";
import { isRelayEngine } from "../core/placement/pairs/pair-members.ts";
import { freezeFloorMs } from "../core/relays/freeze-floor.ts";
import type { RouterCore } from "../core/router-core.ts";

/** How long a placement is good for: a connection attempt of the proxy, its retry, and a body on its way, ms. */
const placementLifeMs = 15_000;

/** SHA-256 of a body that may be gone when it is needed: worked out when asked for, or before the body goes. */
export class BodyDigest {
  #body: Uint8Array | undefined;
  #digest: Uint8Array | undefined;

  constructor(body: Uint8Array) {
    this.#body = body;
  }

  /** The digest, 32 bytes. */
  get sha256(): Uint8Array {
    this.keep();
    return this.#digest as Uint8Array;
  }

  /** Works it out now: the body may change or go. */
  keep(): void {
    if (this.#body === undefined) return;
    this.#digest = createHash("sha256").update(this.#body).digest();
    this.#body = undefined;
  }
}

/** Signs what the router decided for relays. */
export class PlacementSigner {
  readonly #core: RouterCore;
  readonly #clock: Clock;
  readonly #router: string;
  readonly #key: TokenKey;
  readonly #guard: GuardSettings;

  constructor(options: {
    readonly core: RouterCore;
    readonly clock: Clock;
    /** Instance of this router. */
    readonly router: string;
    /** Keys of the mesh, the one that signs first; never empty, see `loadKeys`. */
    readonly keys: readonly NamedKey[];
    /** How relays watch streams that are guarded. */
    readonly guard: GuardSettings;
  }) {
    const [newest] = options.keys;
    if (newest === undefined) throw new RangeError("a signer needs a placement key");
    this.#core = options.core;
    this.#clock = options.clock;
    this.#router = options.router;
    this.#guard = options.guard;
    const { id, key } = newest;
    this.#key = { id, mac: (message) => createHmac("sha256", key).update(message).digest() };
  }

  /**
   * The token of a placed decision for the body of this digest; `undefined` when relays could not run it: an engine that
   * they do not speak, or a worker that has left. `guarded`: whether its stream is to survive its engine. About 15 µs.
   */
  sign(
    decision: Decision,
    body: { readonly sha256: Uint8Array; readonly tenant: string; readonly guarded: boolean },
  ): string | undefined {
    const legs = this.#legs(decision);
    if (legs === undefined) return undefined;
    const issuedUnixMs = Math.floor(this.#clock.wallUnixUs() / 1_000);
    return signPlacement(
      {
        decisionId: decision.id,
        router: this.#router,
        legs,
        bodySha256: body.sha256,
        model: decision.model,
        pool: decision.pool,
        tenant: body.tenant,
        salted: false,
        ...(body.guarded ? { guard: this.#guardOf(decision) } : undefined),
        forecast: forecastOf(decision),
        traceparent: decision.traceparent,
        issuedUnixMs,
        expiresUnixMs: issuedUnixMs + placementLifeMs,
      },
      this.#key,
    );
  }

  /** How relays watch a stream of the worker that decodes. */
  #guardOf({ workerId }: Decision): GuardSettings {
    const worker = workerId as WorkerId;
    const model = this.#core.modelOf(worker);
    if (model === undefined) return this.#guard;
    const load = this.#core.book.load(worker, this.#clock.now());
    const freezeMsMin = freezeFloorMs(this.#guard.freezeMsMin, {
      steps: model.steps,
      stepTokensMax: this.#core.members.get(worker)?.facts?.stepTokensMax ?? 0,
      decoding: load.decoding + 1,
      contextTokens: load.decodingContextTokens,
    });
    return { ...this.#guard, freezeMsMin };
  }

  #legs(decision: Decision): PlacementLeg[] | undefined {
    const pair = decision.pair?.form === "pair" ? decision.pair.candidates[0] : undefined;
    const wanted: [LegRole, string | undefined][] =
      pair === undefined
        ? [["whole", decision.workerId]]
        : [
            ["prefill", pair.prefillWorkerId],
            ["decode", pair.decodeWorkerId],
          ];
    const legs = wanted.flatMap(([role, worker]) => this.#leg(role, worker) ?? []);
    return legs.length === wanted.length ? legs : undefined;
  }

  #leg(role: LegRole, worker: string | undefined): PlacementLeg | undefined {
    const { members } = this.#core;
    const member = members.get(worker as Parameters<typeof members.get>[0]);
    const engine = member?.facts?.engineName ?? "";
    if (member === undefined || !isRelayEngine(engine)) return undefined;
    const { epoch, facts, dpRank, workerId } = member;
    const hasRanks = dpRank > 0 || members.get(`${workerId}/1` as typeof member.key) !== undefined;
    return {
      role,
      workerId: member.key,
      address: member.endpoint,
      workerStartMs: epoch.workerStartMs,
      engineLife: epoch.engineLife,
      engine,
      bootstrap: role === "prefill" ? (facts?.kvBootstrap ?? "") : "",
      ...(hasRanks ? { dpRank } : {}),
    };
  }
}

function forecastOf(decision: Decision): Placement["forecast"] {
  const { chosen, promptTokens, expectedOutputTokens } = decision;
  const pair = decision.pair?.form === "pair" ? decision.pair.candidates[0] : undefined;
  const steps = Math.max(1, expectedOutputTokens - 1);
  return {
    promptTokens,
    cachedTokens: chosen?.matchedTokens ?? 0,
    prefillMs: pair?.term("prefill") ?? chosen?.prefillMs ?? 0,
    transferMs: pair === undefined ? 0 : pair.term("transfer_wait") + pair.term("transfer"),
    transferBytes: pair?.transferBytes ?? 0,
    ttftMs: chosen?.predictedTtftMs ?? 0,
    itlMs: (chosen?.decodeMs ?? 0) / steps,
  };
}
