import { expect, test } from "vitest";
import { readSamples } from "./metrics-text.ts";

test("reads the samples asked for, with labels", () => {
  const text = `# HELP a b
kvmesh_router_unpicked_total{reason="served_elsewhere"} 3
kvmesh_router_unpicked_total{reason="no_decision"} 1.5e1
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",quote="a\\"b"} 1
vllm:prompt_tokens_total 42 1712345678
kvmesh_router_unpicked_total_other 9
broken{ 1
kvmesh_router_unpicked_total nonsense
`;
  expect(readSamples(text, ["kvmesh_router_unpicked_total", "vllm:prompt_tokens_total"])).toEqual([
    { name: "kvmesh_router_unpicked_total", labels: { reason: "served_elsewhere" }, value: 3 },
    { name: "kvmesh_router_unpicked_total", labels: { reason: "no_decision" }, value: 15 },
    { name: "vllm:prompt_tokens_total", labels: {}, value: 42 },
  ]);
  expect(readSamples(text, ["vllm:cache_config_info"])[0]?.labels).toEqual({
    block_size: "16",
    enable_prefix_caching: "True",
    quote: 'a\\"b',
  });
});
