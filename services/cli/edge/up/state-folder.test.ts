import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { StateFolder } from "./state-folder.ts";

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-state-"));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe("StateFolder.prepare", () => {
  test("makes the folder with those above it, and keys of its own", () => {
    const path = join(folder, "a", "b");
    expect(new StateFolder(path).prepare("")).toBe(join(path, "mesh.keys"));
    expect(existsSync(join(path, "logs"))).toBe(true);
    expect(new StateFolder(path).prepare("")).toBe(join(path, "mesh.keys"));
  });

  test("refuses a file in its place, and says which setting to change", () => {
    const path = join(folder, "file");
    writeFileSync(path, "");
    expect(() => {
      new StateFolder(path).claim();
    }).toThrow(/cannot make the state folder .*file \(it is a file\): name another with --state/);
  });

  test.runIf(process.platform === "linux")("ends where the file system takes no folders", () => {
    expect(() => new StateFolder("/proc/kvmesh").prepare("")).toThrow(
      /cannot make the state folder \/proc\/kvmesh.*--state/,
    );
  });
});
