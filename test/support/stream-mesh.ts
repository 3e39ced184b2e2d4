import { loadAnswerOracle, type AnswerOracle } from "./answer-oracle.ts";
import { startMesh, type TestMesh } from "./mesh.ts";
import { relayHttpOf } from "./relay-metrics.ts";

/** A mesh whose streams are all guarded by relays, and what is needed to judge them. */
export interface StreamMesh {
  readonly mesh: TestMesh;
  readonly oracle: AnswerOracle;
  /** Where relays serve their metrics, by number. */
  readonly relays: readonly string[];
}

/** Requests that run whole, and such that run as pairs of prefill and decode, with the router's setting for each. */
export const streamForms = [
  ["whole requests", "never"],
  ["pairs of prefill and decode", "always"],
] as const;

/**
 * Starts routers, relays, real Envoy and engines at their own speed, so that a stream lasts long enough to lose its engine or
 * its relay. `freeze`: when routers take a silent engine for frozen.
 */
export async function startStreamMesh(options: {
  readonly engines: number;
  readonly relays: number;
  readonly freeze: { readonly freezeItlMultiple: number; readonly freezeMsMin: number };
}): Promise<StreamMesh> {
  const oracle = await loadAnswerOracle();
  const mesh = await startMesh({
    engines: options.engines,
    mesh: { relays: options.relays },
    settings: {
      engine: { speedup: 1, kv: { enabled: true } },
      worker: { engine: { kvTransfer: "NixlConnector", kvBytesPerToken: 64 } },
      // A machine that does much else keeps routers and buddies waiting.
      relay: { deadlines: { placeMs: 10_000, mirrorMs: 5_000 } },
      router: { stream: { guard: "relay", ...options.freeze, migrationsMax: 8 } },
    },
  });
  const relays = Array.from({ length: options.relays }, (_, i) =>
    relayHttpOf(mesh, `relay-${String(i)}`),
  );
  return { mesh, oracle, relays };
}
