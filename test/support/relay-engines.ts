import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { generate, idsOf } from "./relay-oracle.ts";

/** What goes wrong at a scripted engine; each may be changed while it runs. */
export interface EngineFaults {
  /** Status of every answer instead of one that is computed. */
  status?: number;
  /** Answers never come. */
  hang?: boolean;
  /** Prefill answers without what decode needs. */
  noHandoff?: boolean;
  /** Decode answers 200 and then an error event. */
  pullFails?: boolean;
  /** The connection breaks after so many tokens. */
  breakAfter?: number;
  /** An error event comes after so many tokens, and the end. */
  errorAfter?: number;
  /** No token comes after so many. */
  freezeAfter?: number;
  /** After so many tokens the next one comes `stallMs` later. */
  stallAfter?: number;
  stallMs?: number;
  /** Characters that each chunk carries beside its token. */
  padding?: number;
  /** Waits before the first token and between tokens, ms. */
  firstMs?: number;
  tokenMs?: number;
}

/** A request as an engine got it. */
export interface SeenRequest {
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  readonly raw: string;
  readonly json: Record<string, unknown>;
  /** When its client closed the connection before the answer was complete, ms; 0 while it did not. */
  abortedAt: number;
}

/** A running engine. */
export interface ScriptedEngine {
  readonly address: string;
  readonly seen: SeenRequest[];
  faults: EngineFaults;
  /** Hand-offs that nobody has pulled. */
  readonly handoffs: Set<string>;
  /** Drops every connection and stops listening, as a killed process does. */
  kill(): void;
  close(): Promise<void>;
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

const isGone = (response: ServerResponse): boolean => response.destroyed;

function promptIdsOf(json: Record<string, unknown>): number[] {
  if (Array.isArray(json["prompt_token_ids"])) return json["prompt_token_ids"] as number[];
  const prompt = json["prompt"];
  if (Array.isArray(prompt)) return prompt as number[];
  if (typeof prompt === "string") return idsOf(prompt);
  const messages = json["messages"] as { role: string; content: string }[];
  return idsOf(messages.map(({ role, content }) => `<${role}>${content}`).join("") + "<assistant>");
}

/**
 * Starts an HTTP server on loopback that speaks the engines' side of completions, chat and disaggregation, whichever of
 * the three protocols a request speaks. Tokens come from the oracle. `cachedTokens` is what it says of its prefix cache. Hand-offs of vLLM are looked up at the engines in
 * `peers`, and one that is not there any more is an error of the test: `replays` counts it.
 */
export async function startScriptedEngine(
  options: {
    readonly faults?: EngineFaults;
    readonly cachedTokens?: number;
    readonly peers?: () => readonly ScriptedEngine[];
    readonly onReplay?: () => void;
  } = {},
): Promise<ScriptedEngine> {
  const seen: SeenRequest[] = [];
  const handoffs = new Set<string>();
  let handoffCount = 0;
  let address = "";
  const engine: ScriptedEngine = {
    get address() {
      return address;
    },
    seen,
    faults: options.faults ?? {},
    handoffs,
    kill: () => {
      server.close();
      server.closeAllConnections();
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => {
          resolve();
        });
        server.closeAllConnections();
      }),
  };

  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const raw = Buffer.concat(parts).toString();
    const json = JSON.parse(raw) as Record<string, unknown>;
    const one: SeenRequest = {
      path: request.url ?? "",
      headers: request.headers,
      raw,
      json,
      abortedAt: 0,
    };
    seen.push(one);
    response.on("close", () => {
      if (!response.writableEnded) one.abortedAt = performance.now();
    });
    const { faults } = engine;
    if (faults.firstMs !== undefined) await sleep(faults.firstMs);
    if (faults.hang === true) return;
    if (faults.status !== undefined) {
      response.writeHead(faults.status, { "content-type": "application/json" });
      response.end('{"error":{"message":"scripted","type":"server_error"}}');
      return;
    }
    const params = json["kv_transfer_params"] as Record<string, unknown> | undefined;
    const disaggregated = json["disaggregated_params"] as Record<string, unknown> | undefined;
    if (params?.["do_remote_decode"] === true) {
      vllmPrefill(json, response);
      return;
    }
    if (disaggregated?.["request_type"] === "context_only") {
      tensorrtPrefill(json, response);
      return;
    }
    if (params?.["do_remote_prefill"] === true) {
      const id = String(params["remote_request_id"]);
      const owner = options.peers?.().find((peer) => peer.handoffs.has(id));
      if (owner === undefined) options.onReplay?.();
      else owner.handoffs.delete(id);
      if (faults.pullFails === true) {
        response.writeHead(200, { "content-type": "text/event-stream" });
        response.end(
          'data: {"error":{"message":"KV load failure","code":500}}\n\ndata: [DONE]\n\n',
        );
        return;
      }
    }
    await complete(json, response, request.url?.includes("chat") === true);
  };

  const vllmPrefill = (json: Record<string, unknown>, response: ServerResponse): void => {
    const ids = promptIdsOf(json);
    const id = `h-${engine.address}-${String(++handoffCount)}`;
    handoffs.add(id);
    const handoff = `{"do_remote_prefill":true, "do_remote_decode":false,"remote_block_ids":[[1,2,3]],"remote_engine_id":"e","remote_request_id":"${id}","remote_host":"127.0.0.1","remote_port":5600,"big":12345678901234567890}`;
    const usage = usageOf(ids.length, 1);
    response.writeHead(200, { "content-type": "application/json" });
    response.end(
      `{"id":"cmpl-1","choices":[{"index":0,"text":"x","finish_reason":"length"}],"usage":${JSON.stringify(usage)}${
        engine.faults.noHandoff === true ? "" : `,"kv_transfer_params":${handoff}`
      }}`,
    );
  };

  const tensorrtPrefill = (json: Record<string, unknown>, response: ServerResponse): void => {
    const ids = promptIdsOf(json);
    const [first] = generate({ promptIds: ids, tokensMax: Number(json["max_tokens"] ?? 16) });
    const isOver = first?.finishReason === "stop";
    const { disagg_request_id } = json["disaggregated_params"] as Record<string, unknown>;
    response.writeHead(200, { "content-type": "application/json" });
    response.end(
      JSON.stringify({
        id: "cmpl-1",
        created: 7,
        model: json["model"],
        prompt_token_ids: ids,
        choices: [
          {
            index: 0,
            text: first?.text ?? "",
            finish_reason: isOver ? "stop" : "not_finished",
            disaggregated_params:
              engine.faults.noHandoff === true
                ? undefined
                : {
                    request_type: "context_only",
                    first_gen_tokens: [first?.id],
                    ctx_request_id: 99,
                    disagg_request_id,
                    encoded_opaque_state: "b3BhcXVl",
                  },
          },
        ],
        usage: usageOf(ids.length, 1),
      }),
    );
  };

  const usageOf = (prompt: number, completion: number): Record<string, unknown> => ({
    prompt_tokens: prompt,
    total_tokens: prompt + completion,
    completion_tokens: completion,
    prompt_tokens_details: { cached_tokens: options.cachedTokens ?? 0 },
  });

  const complete = async (
    json: Record<string, unknown>,
    response: ServerResponse,
    chat: boolean,
  ): Promise<void> => {
    const promptIds = promptIdsOf(json);
    const asked = json["max_completion_tokens"] ?? json["max_tokens"];
    const steps = generate({
      promptIds,
      tokensMax: typeof asked === "number" ? asked : chat || asked === null ? 400 : 16,
      tokensMin: Number(json["min_tokens"] ?? 0),
      stop: [json["stop"] ?? []].flat() as string[],
      stopTokenIds: (json["stop_token_ids"] ?? []) as number[],
      ignoreEos: json["ignore_eos"] === true,
    });
    const head = {
      id: `cmpl-${engine.address}`,
      object: chat ? "chat.completion.chunk" : "text_completion",
      created: 1_790_000_000,
      model: json["model"],
    };
    const tellIds = json["return_token_ids"] === true;
    if (json["stream"] !== true) {
      const all = [...steps];
      const text = all.map((step) => step.text).join("");
      const finish_reason = all[all.length - 1]?.finishReason;
      const choice = chat
        ? { index: 0, message: { role: "assistant", content: text }, finish_reason }
        : { index: 0, text, finish_reason };
      const usage = usageOf(promptIds.length, all.length);
      const bytes = Buffer.from(JSON.stringify({ ...head, choices: [choice], usage }));
      response.writeHead(200, {
        "content-type": "application/json",
        "content-length": bytes.length,
      });
      response.end(bytes);
      return;
    }
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    const send = (chunk: unknown): void => {
      response.write(`data: ${JSON.stringify(chunk)}\n\n`);
    };
    if (chat) {
      send({
        ...head,
        choices: [{ index: 0, delta: { role: "assistant", content: "" }, finish_reason: null }],
        ...(tellIds ? { prompt_token_ids: promptIds } : {}),
      });
    }
    let count = 0;
    for (const { id, text, finishReason } of steps) {
      const { faults } = engine;
      if (count === faults.breakAfter) {
        // What was written must leave first.
        await sleep(3);
        response.destroy();
        return;
      }
      if (count === faults.freezeAfter) return;
      if (count === faults.errorAfter) {
        response.end('data: {"error":{"message":"EngineCore died"}}\n\ndata: [DONE]\n\n');
        return;
      }
      if (faults.tokenMs !== undefined) await sleep(faults.tokenMs);
      if (count === faults.stallAfter) await sleep(faults.stallMs ?? 0);
      if (response.destroyed) return;
      count++;
      const ids = tellIds
        ? {
            token_ids: [id],
            ...(!chat && count === 1 ? { prompt_token_ids: promptIds } : {}),
          }
        : {};
      const content = chat ? { delta: { content: text } } : { text };
      const stop_reason = null;
      const logprobs = faults.padding === undefined ? null : "x".repeat(faults.padding);
      send({
        ...head,
        choices: [
          { index: 0, ...content, logprobs, finish_reason: finishReason, stop_reason, ...ids },
        ],
      });
      while (response.writableNeedDrain) {
        await sleep(2);
        if (isGone(response)) return;
      }
    }
    const wantsUsage = json["stream_options"] as { include_usage?: boolean } | null | undefined;
    if (wantsUsage?.include_usage === true) {
      send({ ...head, choices: [], usage: usageOf(promptIds.length, count) });
    }
    response.end("data: [DONE]\n\n");
  };

  const server: Server = createServer((request, response) => {
    response.on("error", () => undefined);
    answer(request, response).catch((error: unknown) => {
      response.destroy(error as Error);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  address = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  return engine;
}
