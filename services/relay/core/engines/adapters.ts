import type { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import type { RelayEngine } from "../../../shared/core/placement-token/placement.ts";
import type { EngineAdapter } from "./engine-adapter.ts";
import { sglangAdapter } from "./sglang.ts";
import { createTensorrtLlmAdapter } from "./tensorrt-llm.ts";
import { createVllmAdapter } from "./vllm.ts";

/** The adapter of every kind of engine. */
export function createAdapters(json: JsonScanner): Readonly<Record<RelayEngine, EngineAdapter>> {
  return {
    vllm: createVllmAdapter(json),
    sglang: sglangAdapter,
    "tensorrt-llm": createTensorrtLlmAdapter(json),
  };
}
