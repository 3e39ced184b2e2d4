// Loaded into the processes of a test's mesh: writes compiled code to NODE_COMPILE_CACHE soon after their start, since Node
// does so at an orderly end only and tests end them by force.
import { flushCompileCache } from "node:module";

const startMs = 5_000;

setTimeout(flushCompileCache, startMs).unref();
