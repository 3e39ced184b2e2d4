import { sha256 } from "../../../shared/core/sha256.ts";
import type { LiveRelay } from "../topology/live-topology.ts";

const encoder = new TextEncoder();

/**
 * The relay that keeps a stream's ids: of all others the one whose hash with the stream's key is highest (rendezvous
 * hashing), so that streams spread evenly and a relay that comes or goes moves no others. Nothing when there is none.
 */
export function chooseBuddy(
  relays: readonly LiveRelay[],
  self: string,
  key: Uint8Array,
): LiveRelay | undefined {
  let best: LiveRelay | undefined;
  let bestWeight = -1;
  for (const relay of relays) {
    if (relay.instance === self) continue;
    const name = encoder.encode(relay.instance);
    const message = new Uint8Array(name.length + key.length);
    message.set(name);
    message.set(key, name.length);
    const digest = sha256(message);
    const weight = new DataView(digest.buffer).getUint32(0);
    if (weight > bestWeight) [best, bestWeight] = [relay, weight];
  }
  return best;
}
