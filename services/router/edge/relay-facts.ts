import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import type { RelayFacts } from "../core/relays/relay-roster.ts";

/** Engines that one relay may name. */
const enginesMax = 16;

/** What is wrong with what a relay says of itself, beside its addresses, or `undefined`. */
export function relayFactsProblem({
  instance,
  epoch,
  engines,
  streamsMax,
}: RelayFacts): { readonly field: string; readonly text: string } | undefined {
  if (!/^[A-Za-z0-9._:-]{1,64}$/.test(instance)) {
    return { field: "instance", text: "must be 1 to 64 of A-Z a-z 0-9 . _ : -" };
  }
  if (!Number.isSafeInteger(epoch)) return { field: "epoch", text: "is out of range" };
  if (engines.length > enginesMax)
    return { field: "engines", text: `must be at most ${enginesMax}` };
  if (engines.some((name) => !/^[a-z0-9-]{1,32}$/.test(name))) {
    return { field: "engines", text: "must be names of 1 to 32 of a-z 0-9 -" };
  }
  if (streamsMax < 1) return { field: "streams_max", text: "must be at least 1" };
  return undefined;
}

/** What is wrong with the address of a relay, or `undefined`: Envoy dials it with the requests of users. */
export function relayAddressProblem(
  address: string,
  allowed: readonly Cidr[],
): { readonly kind: "form" | "range"; readonly text: string } | undefined {
  const endpoint = parseEndpoint(address);
  if (endpoint === undefined) return { kind: "form", text: "is not ip:port" };
  if (inCidrs(allowed, endpoint.host)) return undefined;
  const ranges = allowed.map(({ text }) => text).join(", ");
  const text = `${address} lies outside relays.allowedCidrs (${ranges}); add its range to the router's settings`;
  return { kind: "range", text };
}
