import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";

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
