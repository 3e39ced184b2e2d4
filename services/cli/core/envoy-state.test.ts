import { describe, expect, test } from "vitest";
import {
  envoyVersion,
  isVersionAtLeast,
  parseClusters,
  parseStats,
  sumStats,
} from "./envoy-state.ts";

describe("parseClusters", () => {
  test("reads hosts, why they are unhealthy, and their counters", () => {
    const clusters = parseClusters({
      cluster_statuses: [
        {
          name: "pool-default",
          host_statuses: [
            {
              address: { socket_address: { address: "127.0.0.1", port_value: 8100 } },
              stats: [{ type: "COUNTER", name: "rq_total", value: "12" }, { name: "rq_error" }],
              health_status: { eds_health_status: "HEALTHY" },
            },
            {
              address: { socket_address: { address: "127.0.0.1", port_value: 8101 } },
              health_status: { eds_health_status: "DRAINING", failed_active_health_check: true },
            },
          ],
        },
        { name: "empty" },
      ],
    });
    expect(clusters.get("pool-default")).toEqual([
      {
        endpoint: "127.0.0.1:8100",
        healthy: true,
        reasons: [],
        stats: { rq_total: 12, rq_error: 0 },
      },
      {
        endpoint: "127.0.0.1:8101",
        healthy: false,
        reasons: ["eds_draining", "failed_active_health_check"],
        stats: {},
      },
    ]);
    expect(clusters.get("empty")).toEqual([]);
  });

  test("gives no clusters for anything else", () => {
    for (const json of [undefined, null, 3, "x", [], { cluster_statuses: {} }]) {
      expect(parseClusters(json).size).toBe(0);
    }
  });
});

test("stats are summed by the end of their name and histograms are left out", () => {
  const stats = parseStats(
    "http.public.ext_proc.failure_mode_allowed: 2\nhttp.trusted.ext_proc.failure_mode_allowed: 3\ncluster.x.rq_time: P0(nan,1) P50(1,2)\n",
  );
  expect(sumStats(stats, ".ext_proc.failure_mode_allowed")).toBe(5);
  expect(stats.size).toBe(2);
});

test("versions compare number by number", () => {
  expect(envoyVersion("36c0a0f/1.40.0/Clean/RELEASE/BoringSSL")).toBe("1.40.0");
  expect(envoyVersion("envoy  version: 36c0a0f/1.37.0-dev/Clean")).toBe("1.37.0");
  expect(envoyVersion("nothing")).toBeUndefined();
  expect(isVersionAtLeast("1.40.0", "1.37.0")).toBe(true);
  expect(isVersionAtLeast("1.37.0", "1.37.0")).toBe(true);
  expect(isVersionAtLeast("1.36.4", "1.37.0")).toBe(false);
  expect(isVersionAtLeast("2.0.0", "1.37.0")).toBe(true);
});
