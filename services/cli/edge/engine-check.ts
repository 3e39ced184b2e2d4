import { request } from "undici";
import { readSamples } from "../core/metrics-text.ts";

/** Longest wait for one answer, ms. */
const answerMsMax = 2_000;

/** What a worker asks of its engine; without these it cannot join. */
const neededPaths = ["/health", "/metrics", "/v1/models"] as const;

const causes: Readonly<Record<string, string>> = {
  ECONNREFUSED: "connection refused",
  ECONNRESET: "connection reset",
  EHOSTUNREACH: "host unreachable",
  ENETUNREACH: "network unreachable",
  ENOTFOUND: "host name not found",
  EAI_AGAIN: "host name not found",
  UND_ERR_CONNECT_TIMEOUT: `no connection within ${String(answerMsMax / 1_000)} s`,
  UND_ERR_SOCKET: "closed the connection without an answer",
};

/** Why a call failed, in words; the error's own text when it is none of the usual ones. */
export function callFailureText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === "TimeoutError") return `no answer within ${String(answerMsMax / 1_000)} s`;
  const { code } = error as NodeJS.ErrnoException;
  return (code === undefined ? undefined : causes[code]) ?? error.message;
}

/** What is wrong with blocks of this size in this mesh; undefined when nothing is. */
export function blockSizeTrouble(engineTokens: number, meshTokens: number): string | undefined {
  return engineTokens > 0 && meshTokens % engineTokens === 0
    ? undefined
    : `has blocks of ${String(engineTokens)} tokens, which do not divide mesh.blockSizeTokens ${String(meshTokens)}: start it with a --block-size that divides ${String(meshTokens)}, or set mesh.blockSizeTokens to a multiple of ${String(engineTokens)}`;
}

/**
 * Why a worker cannot use the engine at this address, in words that follow "the engine at …"; undefined when it can. Asks
 * what a worker asks, 2 s at most. Never throws.
 */
export async function engineTrouble(
  url: string,
  meshBlockSizeTokens: number,
): Promise<string | undefined> {
  const base = url.replace(/\/$/, "");
  let metrics = "";
  for (const path of neededPaths) {
    try {
      const { statusCode, body } = await request(`${base}${path}`, {
        signal: AbortSignal.timeout(answerMsMax),
      });
      const text = await body.text();
      if (statusCode !== 200) return `GET ${path} answers ${String(statusCode)}`;
      if (path === "/metrics") metrics = text;
    } catch (error) {
      return callFailureText(error);
    }
  }
  const [cache] = readSamples(metrics, ["vllm:cache_config_info"]);
  const blockSize = Number(cache?.labels["block_size"]);
  return Number.isInteger(blockSize) ? blockSizeTrouble(blockSize, meshBlockSizeTokens) : undefined;
}
