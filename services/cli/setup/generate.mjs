// Turns protos/** into TypeScript under services/shared/gen. Plain JavaScript: it runs on the host's Node (20 or newer)
// before anything of ours can. As a program: `node services/cli/setup/generate.mjs [--force]`.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { delimiter, dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

/** Root of the repository. */
const repositoryRoot = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");

/**
 * Options of ts-proto. `enumsAsLiterals` and `importSuffix` make the output run under Node's type stripping as it is;
 * `oneof=unions-value` keeps a present but empty message; 64-bit integers are bigint because hashes use every bit.
 */
const tsProtoOptions = [
  "env=node",
  "esModuleInterop=true",
  "importSuffix=.ts",
  "enumsAsLiterals=true",
  "oneof=unions-value",
  "forceLong=bigint",
  "outputServices=grpc-js",
  "outputJsonMethods=false",
  "outputPartialMethods=false",
  "useExactTypes=false",
  "unrecognizedEnum=false",
  "exportCommonSymbols=false",
];

/** Files below `folder` whose names end with `suffix`, relative, with forward slashes, sorted. */
function filesBelow(folder, suffix) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(suffix))
    .map((entry) => relative(folder, join(entry.parentPath ?? entry.path, entry.name)))
    .map((path) => path.split(sep).join("/"))
    .sort();
}

/** Hash of everything the output depends on: the protos, this file, and the versions of both generators. */
function inputHash(root, protos) {
  const hash = createHash("sha256");
  const add = (name, bytes) => hash.update(`${name}\0${bytes.length}\0`).update(bytes);
  for (const path of protos) add(path, readFileSync(join(root, "protos", path)));
  add("generate.mjs", readFileSync(fileURLToPath(import.meta.url)));
  for (const tool of ["protoc", "ts-proto"]) {
    const manifest = JSON.parse(
      readFileSync(join(root, "node_modules", tool, "package.json"), "utf8"),
    );
    add(tool, Buffer.from(manifest.version));
  }
  return hash.digest("hex");
}

/** Where the hash of the inputs of the present output is kept. */
const stampPath = (root) => join(root, "services", "shared", "gen", ".inputs.sha256");

/**
 * Says whether the generated code is missing or older than its inputs. Needs node_modules.
 *
 * @param {string} [root] repository root
 * @returns {boolean}
 */
export function needsGeneration(root = repositoryRoot) {
  const stamp = stampPath(root);
  if (!existsSync(stamp)) return true;
  const protos = filesBelow(join(root, "protos"), ".proto");
  return readFileSync(stamp, "utf8") !== inputHash(root, protos);
}

/** Runs a program to its end; rejects with its last output when it fails. */
function run(command, args, { cwd, env }) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    const keep = (chunk) => {
      output = (output + chunk).slice(-8_000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.on("error", reject);
    child.on("close", (code) => {
      if (code === 0) resolve(output);
      else reject(new Error(output.trim() || `exit code ${code}`));
    });
  });
}

/**
 * Generates all code. Files are replaced one by one with a rename and only when they differ, so that running programs
 * and watchers see whole files; every file that no proto stands for is removed.
 *
 * @param {string} [root] repository root
 * @returns {Promise<{ files: number }>} how many files there are now
 * @throws Error with protoc's own message (file, line, column) when a proto does not compile
 */
export async function generate(root = repositoryRoot) {
  const protoRoot = join(root, "protos");
  const output = join(root, "services", "shared", "gen");
  const protos = filesBelow(protoRoot, ".proto");
  if (protos.length === 0) throw new Error(`no .proto file below ${protoRoot}`);
  const hash = inputHash(root, protos);
  const modules = join(root, "node_modules");
  mkdirSync(output, { recursive: true });
  mkdirSync(join(root, ".kvmesh"), { recursive: true });
  const fresh = mkdtempSync(join(root, ".kvmesh", "gen-"));
  try {
    const plugin = join(
      modules,
      ".bin",
      process.platform === "win32" ? "protoc-gen-ts_proto.cmd" : "protoc-gen-ts_proto",
    );
    // The plugin is a script started by protoc: make the Node that runs this file the first one it finds.
    const path = `${dirname(process.execPath)}${delimiter}${process.env.PATH ?? ""}`;
    await run(
      process.execPath,
      [
        join(modules, "protoc", "protoc.cjs"),
        `--plugin=protoc-gen-ts_proto=${plugin}`,
        `-I${protoRoot}`,
        `-I${join(modules, "protoc", "include")}`,
        `--ts_proto_out=${fresh}`,
        `--ts_proto_opt=${tsProtoOptions.join(",")}`,
        ...protos,
      ],
      { cwd: root, env: { ...process.env, PATH: path } },
    );
    const made = filesBelow(fresh, ".ts");
    for (const file of made) {
      const target = join(output, file);
      const text = readFileSync(join(fresh, file));
      if (existsSync(target) && readFileSync(target).equals(text)) continue;
      mkdirSync(dirname(target), { recursive: true });
      renameSync(join(fresh, file), target);
    }
    const wanted = new Set(made);
    for (const file of filesBelow(output, "")) {
      if (!wanted.has(file)) rmSync(join(output, file));
    }
    writeFileSync(stampPath(root), hash);
    return { files: made.length };
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

if (
  process.argv[1] !== undefined &&
  fileURLToPath(import.meta.url) === realpathSync(process.argv[1])
) {
  try {
    if (process.argv.includes("--force") || needsGeneration()) {
      const { files } = await generate();
      process.stderr.write(`set-up: generated ${files} files from protos\n`);
    }
  } catch (error) {
    process.stderr.write(
      `set-up: protoc failed; mend the proto it names and run \`npm run gen\` again\n${error instanceof Error ? error.message : String(error)}\n`,
    );
    process.exitCode = 1;
  }
}
