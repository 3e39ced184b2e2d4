import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { credentials, status } from "@grpc/grpc-js";
import { pino } from "pino";
import { afterEach, describe, expect, test, vi } from "vitest";

import {
  Exchange,
  type Answer,
  type BodyMode,
  type ExchangeEffect,
  type ExchangeRequest,
} from "../../services/router/core/exchange/exchange.ts";
import { createHotServer, type HotServer } from "../../services/router/edge/hot-server.ts";
import { hotServerKinds } from "../../services/router/edge/hot-server-kinds.ts";
import type { RequestDecider } from "../../services/router/edge/request-decider.ts";
import { routerMetrics } from "../../services/router/metrics.ts";
import { parseCidr } from "../../services/shared/core/cidr.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { createMetrics } from "../../services/shared/edge/metrics.ts";
import {
  ExternalProcessorClient,
  type ProcessingRequest,
  type ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import {
  sendBody,
  sendHeaders,
  sendResponseHeaders,
  sendTrailers,
  type BodyModeName,
} from "../support/router-ext-proc.ts";

const folder = join(import.meta.dirname, "..", "fixtures", "ext-proc");

const answers: Readonly<Record<string, Answer>> = {
  route: {
    kind: "route",
    setHeaders: [["x-gateway-destination-endpoint", "127.0.0.1:8100"]],
    removeHeaders: [],
    metadata: { "envoy.lb": { "x-gateway-destination-endpoint": "127.0.0.1:8100" } },
  },
  refusal: {
    kind: "immediate",
    status: 400,
    headers: [["content-type", "application/json"]],
    body: "{}",
    details: "kvmesh_invalid_request",
    grpcStatus: 3,
  },
};

const modes: readonly BodyMode[] = [
  "none",
  "buffered",
  "buffered_partial",
  "full_duplex",
  "unsupported",
];

function play(exchange: Exchange, line: string): ExchangeEffect[] {
  const [verb, first = "", second] = line.split(" ");
  switch (verb) {
    case "headers": {
      const bodyMode = modes.find((mode) => mode === first);
      if (bodyMode === undefined) throw new Error(`no body mode ${first}`);
      return exchange.receive({
        kind: "request_headers",
        headers: new Map(),
        endOfStream: second === "end",
        bodyMode,
      });
    }
    case "body":
      return exchange.receive({
        kind: "request_body",
        body: new Uint8Array(Number(first)),
        endOfStream: second === "end",
      });
    case "trailers":
      return exchange.receive({ kind: "request_trailers" });
    case "other":
      return exchange.receive({ kind: "other", name: first });
    case "waiting":
      return exchange.waiting(Number(first));
    case "decided": {
      const answer = answers[first];
      if (answer === undefined) throw new Error(`no answer ${first}`);
      return exchange.decided(answer);
    }
    default:
      throw new Error(`unknown line: > ${line}`);
  }
}

function describeEffect(effect: ExchangeEffect): string {
  switch (effect.kind) {
    case "decide": {
      const { bodyBytes, truncated } = effect.request;
      return `decide on ${bodyBytes.toString()} bytes${truncated ? ", more unseen" : ""}`;
    }
    case "answer_headers":
    case "answer_body":
      return `${effect.kind} ${effect.answer.setHeaders.map(([k, v]) => `${k}=${v}`).join(" ")}`;
    case "body_piece":
      return `body_piece ${effect.piece.length.toString()}${effect.endOfStream ? " end" : ""}`;
    case "immediate":
      return `immediate ${effect.answer.status.toString()} ${effect.answer.details}`;
    case "extend_timeout":
      return `extend_timeout ${effect.ms.toString()} ms`;
    case "fail":
      return `fail: ${effect.reason}`;
    default:
      return effect.kind;
  }
}

const files = readdirSync(folder).filter((name) => name.endsWith(".txt"));

interface Step {
  /** What Envoy sends, without the mark. */
  readonly line: string;
  /** What the exchange does about it. */
  readonly expected: readonly string[];
}

/** The steps of a transcript. */
function stepsOf(name: string): Step[] {
  const steps: { line: string; expected: string[] }[] = [];
  for (const line of readFileSync(join(folder, name), "utf8").split("\n")) {
    if (line.startsWith("> ")) steps.push({ line: line.slice(2), expected: [] });
    else if (line.startsWith("< ")) steps.at(-1)?.expected.push(line.slice(2));
  }
  return steps;
}

describe("transcripts of ext_proc exchanges", () => {
  test("there are some", () => {
    expect(files.length).toBeGreaterThan(10);
  });

  test.each(files)("%s", async (name) => {
    const path = join(folder, name);
    const exchange = new Exchange();
    const lines: string[] = [];
    for (const line of readFileSync(path, "utf8").split("\n")) {
      if (line === "" || line.startsWith("<")) continue;
      lines.push(line);
      if (!line.startsWith("> ")) continue;
      lines.push(...play(exchange, line.slice(2)).map((effect) => `< ${describeEffect(effect)}`));
    }
    await expect(`${lines.join("\n")}\n`).toMatchFileSnapshot(path);
  });
});

/** A decider that does what a transcript says. */
class ScriptedDecider implements RequestDecider {
  readonly #waitMsMax: number;
  readonly #seen: string[];
  #answer: ((answer: Answer) => void) | undefined;

  constructor(waitMsMax: number, seen: string[]) {
    this.#waitMsMax = waitMsMax;
    this.#seen = seen;
  }

  decide(request: ExchangeRequest, _context: unknown, answer: (answer: Answer) => void) {
    const effect = { kind: "decide", request } as const;
    this.#seen.push(describeEffect(effect));
    this.#answer = answer;
    return { waitMsMax: this.#waitMsMax, cancel: () => undefined };
  }

  answerWith(name: string): void {
    const answer = answers[name];
    if (answer === undefined) throw new Error(`no answer ${name}`);
    this.#answer?.(answer);
  }
}

/** A message from the server in the words of the transcripts. */
function describeMessage({ response, overrideMessageTimeout }: ProcessingResponse): string {
  if (overrideMessageTimeout !== undefined) {
    const { seconds, nanos } = overrideMessageTimeout;
    return `extend_timeout ${(Number(seconds) * 1_000 + nanos / 1_000_000).toString()} ms`;
  }
  switch (response?.$case) {
    case "requestHeaders":
    case "requestBody": {
      const common = response.value.response;
      const mutation = common?.bodyMutation?.mutation;
      if (mutation?.$case === "streamedResponse") {
        const { body, endOfStream } = mutation.value;
        return `body_piece ${body.length.toString()}${endOfStream ? " end" : ""}`;
      }
      const set = common?.headerMutation?.setHeaders ?? [];
      if (set.length === 0) return "continue_headers";
      const text = set.map(({ header }) => `${header?.key ?? ""}=${String(header?.rawValue)}`);
      return `answer_${response.$case === "requestBody" ? "body" : "headers"} ${text.join(" ")}`;
    }
    case "requestTrailers":
      return "answer_trailers";
    case "immediateResponse":
      return `immediate ${String(response.value.status?.code)} ${response.value.details}`;
    default:
      return response?.$case ?? "nothing";
  }
}

/** What Envoy sends for a line; nothing for those that are the router's own. */
function messageOf(line: string): ProcessingRequest | undefined {
  const [verb, first = "", second] = line.split(" ");
  const names: Readonly<Record<string, BodyModeName>> = {
    none: "none",
    buffered: "buffered",
    buffered_partial: "partial",
    full_duplex: "duplex",
    unsupported: "streamed",
  };
  const step =
    verb === "headers"
      ? sendHeaders(names[first], { endOfStream: second === "end" })
      : verb === "body"
        ? sendBody(Buffer.alloc(Number(first)), second === "end")
        : verb === "trailers"
          ? sendTrailers
          : verb === "other"
            ? sendResponseHeaders
            : undefined;
  return step?.do === "send" ? step.message : undefined;
}

describe.each(hotServerKinds)("the same exchanges over a socket, on %s", (kind) => {
  let server: HotServer | undefined;
  let client: ExternalProcessorClient | undefined;
  afterEach(() => {
    client?.close();
    server?.kill();
  });

  test.each(files)("%s", async (name) => {
    const steps = stepsOf(name);
    const wait = steps.find(({ line }) => line.startsWith("waiting"))?.line.split(" ")[1];
    const seen: string[] = [];
    const decider = new ScriptedDecider(Number(wait ?? 0), seen);
    const loopback = parseCidr("127.0.0.0/8");
    server = createHotServer(kind, {
      extProc: {
        decider,
        clock: realClock,
        log: pino({ level: "silent" }),
        metrics: createMetrics(routerMetrics).metrics,
        limits: { bodyBytesMax: 1 << 20, bodyMemoryBytesMax: 1 << 20 },
      },
      onRecord: () => undefined,
      allowed: loopback === undefined ? [] : [loopback],
      onRefused: () => undefined,
    });
    const port = await server.listen("127.0.0.1", 0);
    client = new ExternalProcessorClient(`127.0.0.1:${port}`, credentials.createInsecure());
    const call = client.process();
    call.on("error", () => undefined);
    call.on("data", (message: ProcessingResponse) => {
      const line = describeMessage(message);
      // The exchange is told of the wait by a line of its own, the server by the decider.
      if (wait !== undefined || !line.startsWith("extend_timeout")) seen.push(line);
    });
    call.on("status", ({ code, details }) => {
      seen.push(code === status.OK ? "end" : `fail: ${details}`);
    });
    const expected: string[] = [];
    for (const { line, expected: lines } of steps) {
      expected.push(...lines);
      const message = messageOf(line);
      if (message !== undefined) call.write(message);
      if (line.startsWith("decided")) decider.answerWith(line.split(" ")[1] ?? "");
      const soFar = expected.length;
      await vi.waitFor(
        () => {
          expect(seen.length).toBeGreaterThanOrEqual(soFar);
        },
        { timeout: 3_000, interval: 2 },
      );
      expect(seen.slice(0, soFar)).toEqual(expected);
    }
    if (!expected.some((line) => line === "end" || line.startsWith("fail"))) call.cancel();
    expect(seen).toEqual(expected);
  });
});
