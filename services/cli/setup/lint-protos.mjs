// Checks the wire contracts: buf's lint rules, and compatibility with the main branch where that has any. Plain
// JavaScript for the host's Node. The buf command comes from `setup.mjs --for test`.
//
//   node services/cli/setup/lint-protos.mjs [--against REF]
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");
const buf = join(root, ".kvmesh", "tools", "buf", "node_modules", ".bin", "buf");

const say = (text) => process.stderr.write(`lint-protos: ${text}\n`);

/** Runs a command in the repository; its own output goes to this process's. Returns the exit code. */
function run(command, args) {
  const result = spawnSync(command, args, {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit"],
    env: { ...process.env, BUF_CACHE_DIR: join(root, ".kvmesh", "tools", "buf-cache") },
    timeout: 120_000,
  });
  if (result.error !== undefined) throw new Error(`${command}: ${result.error.message}`);
  return result.status ?? 1;
}

/** Output of a git command, or nothing when git, the repository or what was asked for is not there. */
function git(args) {
  const result = spawnSync("git", args, { cwd: root, encoding: "utf8", timeout: 30_000 });
  return result.status === 0 ? result.stdout.trim() : undefined;
}

/** The first of the usual names of the main branch that holds protos and their rules. */
function findBaseline(named) {
  for (const ref of named === undefined ? ["origin/main", "main"] : [named]) {
    const files = git(["ls-tree", "--name-only", ref, "buf.yaml", "protos/"]);
    if (files?.includes("buf.yaml") && files.includes("protos")) {
      return git(["rev-parse", `${ref}^{commit}`]);
    }
    if (named !== undefined) throw new Error(`${named} has no buf.yaml and protos to compare with`);
  }
  return undefined;
}

function main() {
  if (!existsSync(buf)) {
    throw new Error("buf is missing: run `node services/cli/setup/setup.mjs --for test`");
  }
  const flag = process.argv.indexOf("--against");
  const baseline = findBaseline(flag < 0 ? undefined : process.argv[flag + 1]);
  const lint = run(buf, ["lint"]);
  if (lint !== 0) say("the protos break the rules in buf.yaml (above)");
  let breaking = 0;
  if (baseline !== undefined) {
    const gitFolder = git(["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    breaking = run(buf, ["breaking", "--against", `${gitFolder}#ref=${baseline}`]);
    if (breaking !== 0) {
      say(
        "the protos are not compatible with the main branch (above): add new fields, keep old ones",
      );
    }
  }
  return lint === 0 && breaking === 0 ? 0 : 1;
}

try {
  process.exitCode = main();
} catch (error) {
  say(error.message);
  process.exitCode = 1;
}
