import { typed, type Config } from "./extension.ts";
import { guardFilter } from "./filter-names.ts";

/**
 * Paths of the OpenAI API that ask a model for something: what a public caller may send. Engines have many more, and some
 * of them reset caches, load adapters or tell of other callers. An entry that ends with a star stands for all below.
 */
export const inferencePaths: readonly string[] = [
  "/v1/chat/completions",
  "/v1/completions",
  "/v1/embeddings",
  "/v1/responses",
  "/v1/rerank",
  "/v1/score",
  "/v1/audio/*",
  "/v1/models",
  "/v1/models/*",
];

/**
 * What relays serve over gRPC: inference, and what its callers ask beside it. Trusted callers have all of it; public ones only
 * what the options add, since a request there names its own tenant and priority.
 */
export const inferenceService = "/kvmesh.inference.v1.Inference/*";
export const relayServices: readonly string[] = [
  inferenceService,
  "/grpc.health.v1.Health/*",
  "/grpc.reflection.v1.ServerReflection/*",
  "/grpc.reflection.v1alpha.ServerReflection/*",
];

/** Characters of a path; what Envoy normalises or refuses is not among them. */
const pathPattern = /^(\/[A-Za-z0-9._~-]+)+(\/\*)?$/;

/** Whether a text can be an entry of the list of public paths. */
export function isPublicPath(text: string): boolean {
  return text.length <= 256 && pathPattern.test(text) && !/\/\.{1,2}(\/|$)/.test(text);
}

/** Condition of a route for one entry. */
export function pathMatch(entry: string): Config {
  return entry.endsWith("/*") ? { prefix: entry.slice(0, -1) } : { path: entry };
}

const message =
  "there is nothing for public callers at this path; they have the inference paths of the OpenAI API";

/** Settings of a route whose requests no router is asked about and no guard looks at. */
export function withoutFilters(): Config {
  const off = typed("envoy.config.route.v3.FilterConfig", { disabled: true });
  return { "envoy.filters.http.ext_proc": off, [guardFilter]: off };
}

/** The route of all other paths: 404, without asking a router. */
export function nothingRoute(): Config {
  const error = { message, type: "invalid_request_error", param: null, code: "not_found" };
  return {
    name: "nothing",
    match: { prefix: "/" },
    typed_per_filter_config: withoutFilters(),
    direct_response: { status: 404, body: { inline_string: JSON.stringify({ error }) } },
    response_headers_to_add: [
      {
        header: { key: "content-type", value: "application/json" },
        append_action: "OVERWRITE_IF_EXISTS_OR_ADD",
      },
    ],
  };
}
