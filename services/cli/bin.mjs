#!/usr/bin/env node
// Launcher of the `kvmesh` command: runs main.ts with the package's own Node, whatever Node started this file.
// Plain JavaScript without dependencies, since it must also run before set-up has.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../..");
const node = join(root, "node_modules/node/bin/node");
const generated = join(root, "services/shared/gen");

if (!existsSync(node) || !existsSync(generated)) {
  const missing = existsSync(node) ? "generated code" : "packages";
  process.stderr.write(
    `kvmesh: set-up has not run (no ${missing}); in ${root} run "npm start", or "npm install && npm run gen"\n`,
  );
  process.exit(1);
}

const child = spawn(node, [join(here, "main.ts"), ...process.argv.slice(2)], {
  stdio: ["inherit", "inherit", "inherit", "ipc"],
  env: {
    ...process.env,
    KVMESH_STARTED_UNIX_MS: String(Date.now()),
    NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? join(root, ".kvmesh/compile-cache"),
  },
});

// A terminal sends Ctrl-C to both processes, a supervisor only to this one; main.ts takes two at once for one.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, () => child.kill(signal === "SIGHUP" ? "SIGTERM" : signal));
}
child.once("error", (error) => {
  process.stderr.write(`kvmesh: cannot run ${node}: ${error.message}\n`);
  process.exit(1);
});
child.once("exit", (code, signal) => {
  process.exit(code ?? 128 + (constants.signals[signal] ?? 0));
});
