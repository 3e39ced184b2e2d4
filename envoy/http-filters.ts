import { readFileSync } from "node:fs";
import { join } from "node:path";
import { reservedFields } from "../services/shared/core/reserved-fields.ts";
import { duration, extension, type Config } from "./extension.ts";
import { guardFilter } from "./filter-names.ts";
import type { BodyMode, EnvoyOptions } from "./options.ts";

/** Static cluster of the routers' hot ports. */
export const routerCluster = "router";

/** Paths that the default pool serves without a router. Engines have many more, some of them administrative. */
const unplacedPaths: readonly string[] = [
  "/v1/chat/completions",
  "/v1/completions",
  "/v1/embeddings",
  "/v1/models",
];

const bodyModes: Readonly<Record<BodyMode, string>> = {
  buffered: "BUFFERED",
  buffered_partial: "BUFFERED_PARTIAL",
  duplex: "FULL_DUPLEX_STREAMED",
};

/**
 * The external processor. It is asked on the request side only, so that a router that has answered is no longer needed.
 * Only its own metadata namespaces are taken over, and a failure is 503 where it is not let pass.
 */
export function extProcFilter(options: EnvoyOptions): Config {
  const isDuplex = options.bodyMode === "duplex";
  return extension(
    "envoy.filters.http.ext_proc",
    "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
    {
      grpc_service: { envoy_grpc: { cluster_name: routerCluster } },
      failure_mode_allow: options.defaultPool.failOpen,
      status_on_error: { code: "ServiceUnavailable" },
      message_timeout: duration(options.timeouts.routerMessageMs),
      max_message_timeout: duration(options.timeouts.routerMessageMsMax),
      processing_mode: {
        request_header_mode: "SEND",
        request_body_mode: bodyModes[options.bodyMode],
        request_trailer_mode: isDuplex ? "SEND" : "SKIP", // duplex needs to hear of every end
        response_header_mode: "SKIP",
        response_body_mode: "NONE",
        response_trailer_mode: "SKIP",
      },
      metadata_options: {
        receiving_namespaces: { untyped: ["envoy.lb", "kvmesh"] },
        forwarding_namespaces: { untyped: ["envoy.lb", "envoy.lb.subset_hint"] },
      },
      mutation_rules: { disallow_is_error: { value: false } },
    },
  );
}

/** The guard against requests that no router has placed; its rules are in `model-guard.lua`. */
export function guardFilterConfig(): Config {
  const source = readFileSync(join(import.meta.dirname, "model-guard.lua"), "utf8");
  return extension(guardFilter, "envoy.extensions.filters.http.lua.v3.Lua", {
    default_source_code: { inline_string: source },
  });
}

/** The guard's settings, as metadata of every route. */
export function guardSettings(options: EnvoyOptions): Config {
  return {
    open: options.defaultPool.failOpen && options.defaultPool.models.length > 0,
    models: options.defaultPool.models,
    paths: unplacedPaths,
    reserved: [...reservedFields],
    body_bytes_max: options.limits.guardBodyBytesMax,
  };
}

/** Sends the request on. Envoy's own headers to engines and clients stay out. */
export function routerFilter(): Config {
  return extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {
    suppress_envoy_headers: true,
  });
}
