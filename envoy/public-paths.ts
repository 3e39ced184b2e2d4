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

/** The route of all other paths: 404, without asking a router. */
export function nothingRoute(): Config {
  const off = typed("envoy.config.route.v3.FilterConfig", { disabled: true });
  const error = { message, type: "invalid_request_error", param: null, code: "not_found" };
  return {
    name: "nothing",
    match: { prefix: "/" },
    typed_per_filter_config: { "envoy.filters.http.ext_proc": off, [guardFilter]: off },
    direct_response: { status: 404, body: { inline_string: JSON.stringify({ error }) } },
    response_headers_to_add: [
      {
        header: { key: "content-type", value: "application/json" },
        append_action: "OVERWRITE_IF_EXISTS_OR_ADD",
      },
    ],
  };
}
