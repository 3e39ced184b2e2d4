import { describe, expect, test } from "vitest";
import { startMesh, type TestMesh } from "../support/mesh.ts";

const requestCount = 1_800;
const concurrency = 24;

/** Keeps `concurrency` small requests under way until `requestCount` have been answered; returns the bad answers. */
async function send(mesh: TestMesh): Promise<string[]> {
  const bad: string[] = [];
  let sent = 0;
  const client = async (): Promise<void> => {
    while (sent < requestCount) {
      const content = `message ${String(++sent)}`;
      const { status, text } = await mesh.chat({ content, maxTokens: 1 });
      if (status !== 200) bad.push(`${String(status)}: ${text}`);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, client));
  return bad;
}

describe.each(["lean", "grpc-js"])("a router's %s server under lasting load", (server) => {
  test("answers every request, though Envoy resets the stream of each", async () => {
    const mesh = await startMesh({
      settings: { engine: { speedup: 20 }, router: { extProc: { server } } },
    });
    try {
      expect(await send(mesh)).toEqual([]);
      const stats = await mesh.admin.stats("ext_proc|cluster.router.upstream_cx_destroy");
      const failed = [...stats].filter(
        ([name, value]) => /streams_failed|failure_mode_allowed|cx_destroy/.test(name) && value > 0,
      );
      expect(failed).toEqual([]);
    } finally {
      await mesh.stop();
    }
  });
});
