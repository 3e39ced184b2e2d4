import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { packageRoot } from "../../services/cli/edge/up/mesh.ts";

const folder = join(packageRoot, ".kvmesh/test-cache");

/** Tables of tokenizers, for the processes of all tests: nothing in them depends on a mesh. */
export const tokenizerCache = join(folder, "tokenizers");

/** Environment of the processes of a test: compiled code is kept for the next one, and a start takes half the time. */
export const cacheEnv: Readonly<Record<string, string>> = {
  NODE_COMPILE_CACHE: join(folder, "compiled"),
  NODE_OPTIONS: `--import ${pathToFileURL(join(import.meta.dirname, "keep-compiled-code.mjs")).href}`,
};
