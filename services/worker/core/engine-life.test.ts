import { describe, expect, test } from "vitest";
import { EngineLife } from "./engine-life.ts";

const answered = (processStartSeconds?: number) =>
  ({ kind: "answered", processStartSeconds }) as const;

describe("EngineLife", () => {
  test("is ready from the first answer on, in life 1, and starting before it", () => {
    const life = new EngineLife();
    expect(life.step({ kind: "refused" })).toEqual([]);
    expect(life.step(answered(100))).toEqual([{ kind: "ready", ready: true, reason: "up" }]);
    expect([life.life, life.isReady]).toEqual([1, true]);
  });

  test("forgives one failed probe, not two, and a refused connection not at all", () => {
    const life = new EngineLife();
    life.step(answered(100));
    expect(life.step({ kind: "failed" })).toEqual([]);
    expect(life.step(answered(100))).toEqual([]);
    life.step({ kind: "failed" });
    expect(life.step({ kind: "failed" })).toMatchObject([{ ready: false }]);
    expect(life.step({ kind: "refused" })).toEqual([]);
    expect(life.step(answered(100))).toMatchObject([{ ready: true }]);
    expect(life.step({ kind: "refused" })).toMatchObject([{ ready: false }]);
    expect(life.life).toBe(1);
  });

  test("counts one life when the sequence and then the process start tell of the same restart", () => {
    const life = new EngineLife();
    life.step(answered(100));
    expect(life.step({ kind: "sequence_restarted" })).toEqual([
      { kind: "new_life", cause: "sequence" },
    ]);
    expect(life.step(answered(200))).toEqual([]);
    expect(life.step(answered(200.1))).toEqual([]);
    expect(life.step(answered(300))).toEqual([{ kind: "new_life", cause: "process_start" }]);
    expect(life.life).toBe(3);
  });

  test("without a start time takes a port that nobody listened on as a restart, a slow answer not", () => {
    const life = new EngineLife();
    life.step(answered());
    life.step({ kind: "failed" });
    life.step({ kind: "failed" });
    expect(life.step(answered())).toEqual([{ kind: "ready", ready: true, reason: "up" }]);
    life.step({ kind: "refused" });
    expect(life.step(answered())).toEqual([
      { kind: "new_life", cause: "connection" },
      { kind: "ready", ready: true, reason: "up" },
    ]);
  });
});
