/**
 * Runs a program that knows nothing of IPC channels and ends it when the parent's channel closes:
 * `node guard.ts <program> <argument>…`. Passes SIGTERM and SIGINT on and exits as the program did.
 */
import { spawn } from "node:child_process";
import process from "node:process";

const [program, ...args] = process.argv.slice(2);
if (program === undefined) {
  process.stderr.write("usage: guard.ts <program> <argument>…\n");
  process.exit(2);
}
const child = spawn(program, args, { stdio: ["ignore", "inherit", "inherit"] });
child.once("error", (error) => {
  process.stderr.write(`${error.message}\n`);
  process.exit(127);
});
child.once("exit", (code, signal) => {
  process.exit(code ?? (signal === "SIGKILL" ? 137 : 143));
});
child.once("spawn", () => {
  process.send?.({ event: "ready", service: "guard", ports: {} });
});
for (const signal of ["SIGTERM", "SIGINT"] as const) {
  process.on(signal, () => {
    child.kill(signal);
  });
}
process.on("disconnect", () => {
  child.kill("SIGKILL");
});
