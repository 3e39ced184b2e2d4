import type { OpenAiRequest } from "../core/openai/openai-request.ts";
import { isGuardMode, type GuardAsk, type GuardMode } from "../core/relays/decision-guard.ts";
import { findUnguardable } from "../core/relays/guard-fields.ts";
import type { GuardOptions } from "../core/relays/stream-guards.ts";

/** Decides which streams are to be guarded, by settings and by what a trusted caller asks for. */
export class GuardAsks {
  readonly #options: GuardOptions;

  constructor(options: GuardOptions) {
    this.#options = options;
  }

  /** Whether a stream of a pool that passes a relay anyway is guarded. */
  isGuarded(openAi: OpenAiRequest, pool: string): boolean {
    return isStream(openAi) && this.#modeOf(pool) !== "off";
  }

  /**
   * How a request is to be guarded; `undefined` when it need not. `header`: the value of `x-kvmesh-guard`, absent for none;
   * one that names no mode says nothing. The body is looked through only where every stream is to pass a relay.
   */
  of(
    openAi: OpenAiRequest,
    pool: string,
    from: { readonly header: string | undefined; readonly body: Uint8Array | undefined },
  ): GuardAsk | undefined {
    if (!isStream(openAi)) return undefined;
    const { header, body } = from;
    const mode = header !== undefined && isGuardMode(header) ? header : this.#modeOf(pool);
    if (mode === "off") return undefined;
    if (mode === "pairs") return { mode, off: "" };
    return { mode, off: body === undefined ? "not_read" : (findUnguardable(body) ?? "") };
  }

  #modeOf(pool: string): GuardMode {
    return this.#options.pools.get(pool) ?? this.#options.mode;
  }
}

function isStream({ kind, stream }: OpenAiRequest): boolean {
  return stream === true && (kind === "chat" || kind === "completions");
}
