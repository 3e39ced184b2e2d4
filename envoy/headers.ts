import { extension, type Config } from "./extension.ts";

/** Carries the cluster that a request goes to; set at the door, overwritten by the router's answer. */
export const poolHeader = "x-kvmesh-pool";

/** Name of the cluster of a pool, as the routers' discovery service serves it. */
export function poolCluster(poolId: string): string {
  return `pool-${poolId}`;
}

/** Cluster of the processes that carry out prefill/decode pairs and guarded streams. */
export const relaysCluster = "relays";

/**
 * Headers that control a router, a relay, an engine or Envoy itself. None of a client's reaches any of them: a client
 * could otherwise choose its engine, its data-parallel rank, its prefill worker or Envoy's retries.
 */
const controlPrefixes: readonly string[] = [
  "x-kvmesh-",
  "x-gateway-",
  "x-llm-d-",
  "x-slo-",
  "x-prefiller-",
  "x-encoder-",
  "x-data-parallel-",
  "x-kv-cache-source-",
  "x-envoy-",
];

/** What a trusted caller may say about its request, under our names and those of the inference extension. */
export const trustedHeaders: readonly string[] = [
  "x-kvmesh-tenant",
  "x-kvmesh-priority",
  "x-kvmesh-session",
  "x-kvmesh-slo-ttft-ms",
  "x-kvmesh-slo-itl-ms",
  "x-kvmesh-guard",
  "x-kvmesh-resume",
  "x-gateway-inference-fairness-id",
  "x-gateway-inference-objective",
  "x-llm-d-inference-fairness-id",
  "x-llm-d-inference-objective",
  "x-llm-d-slo-ttft-ms",
  "x-llm-d-slo-tpot-ms",
  "x-slo-ttft-ms",
  "x-slo-tpot-ms",
];

/** Prefix under which a trusted caller's headers survive the removal; free of any other meaning. */
const keepPrefix = "x-keep-kvmesh-";

/**
 * The client's `traceparent` when it is sound, else nothing: below one that it cannot read, Envoy starts no trace at all,
 * and router and engine each begin their own. With 55 characters in all the second field has the 32 that it must have;
 * patterns here may not grow beyond a small program. A header that comes twice is not sound either.
 */
const soundTraceparent =
  "%CEL(size(request.headers['traceparent']) == 55" +
  " && request.headers['traceparent'].matches('^[0-9a-f]{2}-[0-9a-f]+-[0-9a-f]{16}-[0-9a-f]{2}$')" +
  " && !request.headers['traceparent'].matches('^ff|-0+-')" +
  " ? request.headers['traceparent'] : '')%";

const removePrefix = (prefix: string): Config => ({ remove_on_match: { key_matcher: { prefix } } });
const set = (key: string, value: string): Config => ({
  append: { header: { key, value }, append_action: "OVERWRITE_IF_EXISTS_OR_ADD" },
});

/**
 * What happens to a request's headers before anything reads them: control headers go, the default pool is set. Of a
 * trusted caller the listed headers are kept, by setting them aside and putting them back: a list of what may stay
 * holds also for headers that nobody has thought of yet. A trace context that nobody could read goes too.
 */
export function earlyHeaderMutation(listener: "public" | "trusted", poolId: string): Config {
  const kept = listener === "trusted" ? trustedHeaders : [];
  const aside = (name: string): string => keepPrefix + name;
  return extension(
    "kvmesh",
    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
    {
      mutations: [
        removePrefix(keepPrefix),
        ...kept.map((name) => set(aside(name), `%REQ(${name})%`)),
        set(aside("traceparent"), soundTraceparent),
        { remove: "traceparent" },
        ...controlPrefixes.map(removePrefix),
        ...kept.map((name) => set(name, `%REQ(${aside(name)})%`)),
        set("traceparent", `%REQ(${aside("traceparent")})%`),
        removePrefix(keepPrefix),
        set(poolHeader, poolCluster(poolId)),
      ],
    },
  );
}

/** Control headers that an engine must not see. */
export const hiddenFromEngines: readonly string[] = [
  poolHeader,
  "x-gateway-destination-endpoint",
  "x-kvmesh-placement",
  ...trustedHeaders,
];

/** Control headers that a relay has no use for. It needs the placement and the caller's wishes. */
export const hiddenFromRelays: readonly string[] = [poolHeader, "x-gateway-destination-endpoint"];
