import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";

import {
  Exchange,
  type Answer,
  type BodyMode,
  type ExchangeEffect,
} from "../../services/router/core/exchange/exchange.ts";

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
