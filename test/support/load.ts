import { randomUUID } from "node:crypto";
import { readAccessLog, eventually, type AccessRecord, type TestMesh } from "./mesh.ts";

/** A steady stream of short chat requests. */
export interface LoadOptions {
  /** Requests a second; sent at these times whatever the answers do. */
  readonly perSecond: number;
  /** Listener; default the public one of the mesh. */
  readonly url?: string;
  readonly model?: string;
  /** Tokens of each answer; default 8. */
  readonly maxTokens?: number;
  /** Text of request `index`; default a text of its own for each, so that nothing is cached. */
  readonly content?: (index: number) => string;
}

/** What became of one request. */
export interface LoadOutcome {
  /** `x-request-id` that was sent; the join key with Envoy's access log. */
  readonly id: string;
  /** When it was due, ms since 1970. */
  readonly sentAt: number;
  readonly endedAt: number;
  /** 0 when no answer came. */
  readonly status: number;
  /** Why it did not end as a whole stream; `undefined` for a good one. */
  readonly failure: string | undefined;
}

/** A load that runs. */
export interface RunningLoad {
  /** Requests sent whose answer has not ended. */
  readonly openCount: number;
  /** Outcomes so far, in the order in which they ended. */
  readonly outcomes: readonly LoadOutcome[];
  /** Sends no more, waits for all answers and returns all outcomes. Safe to call twice. */
  stop(): Promise<readonly LoadOutcome[]>;
}

/** A request that has not ended by then counts as failed, ms. */
const answerMsMax = 30_000;
/** Longest wait for a record in Envoy's file, ms. */
const flushMsMax = 15_000;

/** Starts an open-loop load on a mesh: requests go out when they are due, at most `perSecond` × 30 s are open. */
export function startLoad(mesh: TestMesh, options: LoadOptions): RunningLoad {
  const run = randomUUID().slice(0, 8);
  const startedAt = Date.now();
  const outcomes: LoadOutcome[] = [];
  const open = new Set<Promise<void>>();
  let sent = 0;
  const send = (): void => {
    const index = sent++;
    const sentAt = startedAt + (index * 1_000) / options.perSecond;
    const id = `load-${run}-${index}`;
    const request = exchange(mesh, { ...options, id, index }).then((end) => {
      outcomes.push({ id, sentAt, endedAt: Date.now(), ...end });
      open.delete(request);
    });
    open.add(request);
  };
  send();
  const timer = setInterval(
    () => {
      // A late timer catches up, as clients that do not know of each other would.
      const due = Math.floor(((Date.now() - startedAt) * options.perSecond) / 1_000) + 1;
      while (sent < due) send();
    },
    Math.max(1, 500 / options.perSecond),
  );
  return {
    get openCount() {
      return open.size;
    },
    outcomes,
    stop: async () => {
      clearInterval(timer);
      await Promise.all(open);
      return outcomes;
    },
  };
}

async function exchange(
  mesh: TestMesh,
  request: LoadOptions & { readonly id: string; readonly index: number },
): Promise<Pick<LoadOutcome, "status" | "failure">> {
  const { id, index, url = mesh.url, model = mesh.model, maxTokens = 8 } = request;
  const content = request.content?.(index) ?? `Request ${id} asks for something of its own.`;
  let status = 0;
  try {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-request-id": id },
      body: JSON.stringify({
        model,
        max_tokens: maxTokens,
        ignore_eos: true,
        stream: true,
        messages: [{ role: "user", content }],
      }),
      signal: AbortSignal.timeout(answerMsMax),
    });
    status = response.status;
    const text = await response.text();
    if (status !== 200) return { status, failure: `HTTP ${status}: ${text.slice(0, 300)}` };
    if (!text.trimEnd().endsWith("data: [DONE]")) {
      return { status, failure: `the stream ended early: …${text.slice(-120)}` };
    }
    return { status, failure: undefined };
  } catch (error) {
    const { message, cause } = error as Error;
    const why = cause instanceof Error ? `${message} (${cause.message})` : message;
    return { status, failure: why };
  }
}

/** How a request went past the routers, from Envoy's access log. */
export interface PickedOutcome extends LoadOutcome {
  readonly record: AccessRecord;
  /** Why it does not count as picked: no decision, or served by another endpoint than the first choice. */
  readonly unpicked: "no_decision" | "served_elsewhere" | undefined;
}

/** Joins outcomes with their records; waits until Envoy has written all of them. */
export async function joinAccessLog(
  mesh: TestMesh,
  outcomes: readonly LoadOutcome[],
): Promise<PickedOutcome[]> {
  const records = await eventually(
    "Envoy has written a record of every request",
    () => {
      const byId = new Map(readAccessLog(mesh).map((record) => [record["id"], record]));
      return outcomes.every(({ id }) => byId.has(id)) && byId;
    },
    flushMsMax,
  );
  return outcomes.map((outcome) => {
    const record = records.get(outcome.id) ?? {};
    return { ...outcome, record, unpicked: unpickedOf(record) };
  });
}

/** Why a served request counts as unpicked; `undefined` when the first choice of a router served it. */
export function unpickedOf(record: AccessRecord): PickedOutcome["unpicked"] {
  const { decision, picked, served } = record;
  if (typeof decision !== "string" || typeof picked !== "string") return "no_decision";
  return picked.split(",")[0] === served ? undefined : "served_elsewhere";
}

/** Lines for a failure message, at most 12: the outcomes with what is known of them; empty for none. */
export function describeOutcomes(outcomes: readonly (LoadOutcome | PickedOutcome)[]): string {
  const lines = outcomes.slice(0, 12).map((one) => {
    const unpicked =
      "unpicked" in one ? ` ${one.unpicked ?? "picked"} ${JSON.stringify(one.record)}` : "";
    const at = new Date(one.sentAt).toISOString().slice(14, 23);
    return `${at} ${one.id} ${one.failure ?? "ok"}${unpicked}`;
  });
  if (outcomes.length > lines.length) lines.push(`and ${outcomes.length - lines.length} more`);
  return lines.join("\n");
}
