import { Agent, request, type IncomingMessage } from "node:http";
import { StringDecoder } from "node:string_decoder";
import { setTimeout as sleep } from "node:timers/promises";

/** A stream that a client asks for. */
export interface StreamAsk {
  /** Base address of who serves it, such as a mesh's trusted listener. */
  readonly url: string;
  readonly path?: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Asks for a stream with `return_token_ids`. */
  readonly body: string;
  /** Whether the client sends again what broke off, or was refused since nobody was there; default false. */
  readonly resumes?: boolean;
}

/** What became of a stream. */
export interface StreamEnd {
  /** Ids of all tokens, in the order in which they came. */
  readonly tokens: readonly number[];
  /**
   * `done`: it told its end. `error`: an event said that it cannot go on. `refused`: a status other than 200 instead of a
   * stream, or of its rest. `cut`: the connection ended, and nothing could be resumed. `timeout`: too long.
   */
  readonly kind: "done" | "error" | "refused" | "cut" | "timeout";
  /** What was said to that; empty for `done`. */
  readonly why: string;
  /** `x-kvmesh-guard` of the first answer; empty for streams that passed no relay. */
  readonly guard: string;
  /** `x-request-id` of the first answer. */
  readonly requestId: string;
  readonly finishReason: string;
  /** Time to the first token, ms from sending; NaN without one. */
  readonly ttftMs: number;
  /** Longest time between two tokens one after the other, ms. */
  readonly gapMsMax: number;
  /** How often the connection was lost and the stream went on from its last named event. */
  readonly resumes: number;
  /** How often the connection was lost before anything had come, so that the request was simply sent again. */
  readonly resends: number;
}

/** Whole life of one stream, ms. */
const streamMsMax = 60_000;
/** Tries of one stream to be gone on with, and the time between two. */
const resumesMax = 20;
const retryMs = 150;

const agent = new Agent({ keepAlive: true, maxSockets: Infinity });

interface Chunk {
  readonly choices?: readonly {
    readonly token_ids?: readonly number[] | null;
    readonly finish_reason?: string | null;
  }[];
  readonly error?: { readonly code?: unknown; readonly message?: unknown };
}

/** How one connection ended. */
type Ending =
  | { readonly kind: "done" | "error" | "refused" | "timeout"; readonly why: string }
  /** Nothing said that it was over: the connection broke, or nobody was there. */
  | { readonly kind: "cut"; readonly why: string };

/**
 * Reads a stream to its end. A client that resumes sends the same body again when the connection breaks, with the name of the
 * last whole event, or without one when nothing had come. It takes whole events only.
 */
export async function readTokenStream(ask: StreamAsk): Promise<StreamEnd> {
  const reading = new Reading();
  const deadline = performance.now() + streamMsMax;
  let resumes = 0;
  let resends = 0;
  for (;;) {
    const ending = await reading.read(ask, deadline);
    const mayGoOn =
      ask.resumes === true &&
      ending.kind === "cut" &&
      resumes + resends < resumesMax &&
      (reading.lastId !== "" || reading.tokens.length === 0);
    if (!mayGoOn) {
      const { tokens, guard, requestId, finishReason, ttftMs, gapMsMax } = reading;
      const { kind, why } = ending;
      const common = { tokens, guard, requestId, finishReason, ttftMs, gapMsMax };
      return { ...common, kind, why, resumes, resends };
    }
    if (reading.tokens.length > 0) resumes++;
    else resends++;
    await sleep(retryMs);
  }
}

class Reading {
  readonly tokens: number[] = [];
  guard = "";
  requestId = "";
  finishReason = "";
  ttftMs = Number.NaN;
  gapMsMax = 0;
  /** Name of the last whole event. */
  lastId = "";
  readonly #sentAt = performance.now();
  #tokenAt = 0;
  #answers = 0;

  read({ url, path, headers, body }: StreamAsk, deadline: number): Promise<Ending> {
    const isRest = this.tokens.length > 0;
    return new Promise((resolve) => {
      const timer = setTimeout(
        () => {
          settle({ kind: "timeout", why: `no end within ${String(streamMsMax)} ms` });
        },
        Math.max(1, deadline - performance.now()),
      );
      const settle = (ending: Ending): void => {
        clearTimeout(timer);
        // A connection whose answer was read to its end stays for the next request.
        if (ending.kind !== "done") outgoing.destroy();
        resolve(ending);
      };
      const outgoing = request(
        new URL(path ?? "/v1/completions", url),
        {
          method: "POST",
          agent,
          headers: {
            "content-type": "application/json",
            "content-length": Buffer.byteLength(body),
            ...headers,
            ...(isRest ? { "x-kvmesh-resume": this.lastId } : {}),
          },
        },
        (response) => {
          this.#answer(response, settle);
        },
      );
      outgoing.on("error", (error) => {
        settle({ kind: "cut", why: error.message });
      });
      outgoing.end(body);
    });
  }

  #answer(response: IncomingMessage, settle: (ending: Ending) => void): void {
    const { statusCode: status = 0, headers } = response;
    if (this.#answers++ === 0) {
      this.guard = String(headers["x-kvmesh-guard"] ?? "");
      this.requestId = String(headers["x-request-id"] ?? "");
    }
    const decoder = new StringDecoder("utf8");
    let text = "";
    let over: Ending | undefined;
    response.on("error", (error) => {
      settle(over ?? { kind: "cut", why: error.message });
    });
    response.on("data", (part: Buffer) => {
      text += decoder.write(part);
      if (status !== 200) return;
      let from = 0;
      for (let to = text.indexOf("\n\n"); to >= 0; to = text.indexOf("\n\n", from)) {
        const ending = this.#event(text.slice(from, to));
        from = to + 2;
        if (ending === undefined) continue;
        over ??= ending;
      }
      text = text.slice(from);
    });
    response.on("end", () => {
      // Behind a proxy a relay that is gone is a 502 or 503 until another one is there.
      const isGone = status === 502 || status === 503;
      if (status === 200) settle(over ?? { kind: "cut", why: "ended without its last event" });
      else settle({ kind: isGone ? "cut" : "refused", why: `${String(status)} ${text}` });
    });
  }

  #event(event: string): Ending | undefined {
    let name: string | undefined;
    let ending: Ending | undefined;
    for (const line of event.split("\n")) {
      if (line.startsWith("id: ")) name = line.slice(4);
      if (!line.startsWith("data: ")) continue;
      const json = line.slice(6);
      if (json === "[DONE]") return { kind: "done", why: "" };
      const chunk = JSON.parse(json) as Chunk;
      if (chunk.error !== undefined) ending = { kind: "error", why: json };
      const [choice] = chunk.choices ?? [];
      if (choice === undefined) continue;
      this.#take(choice.token_ids ?? []);
      this.finishReason = choice.finish_reason ?? this.finishReason;
    }
    // As readers of events do: a name stays until another one comes, be it an empty one.
    this.lastId = name ?? this.lastId;
    return ending;
  }

  #take(ids: readonly number[]): void {
    if (ids.length === 0) return;
    const now = performance.now();
    if (this.tokens.length === 0) this.ttftMs = now - this.#sentAt;
    else this.gapMsMax = Math.max(this.gapMsMax, now - this.#tokenAt);
    this.#tokenAt = now;
    this.tokens.push(...ids);
  }
}
