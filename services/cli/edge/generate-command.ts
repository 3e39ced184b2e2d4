import { MeshError } from "../../shared/core/errors.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { InferenceCaller, type Generated } from "../../shared/edge/inference-client.ts";
import { InferenceError } from "../../shared/edge/inference-error.ts";
import {
  FinishReason,
  type GenerateRequest,
  type Started,
} from "../../shared/gen/kvmesh/inference/v1/inference.ts";
import {
  failureJson,
  failureLines,
  finishedLines,
  type FinishedRequest,
} from "../core/generate-view.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";
import { Interrupts } from "./interrupts.ts";
import { requireRun } from "./running-mesh.ts";

/** Options of `kvmesh generate`. */
export interface GenerateCommandOptions {
  /** Relays, or an Envoy before them; those of the mesh that runs here when empty. */
  readonly relay: readonly string[];
  readonly state?: string | undefined;
  /** The mesh's own when absent. */
  readonly model?: string | undefined;
  /** Send the text as a message of a chat. */
  readonly chat?: boolean | undefined;
  readonly maxTokens?: number | undefined;
  readonly temperature?: number | undefined;
  readonly seed?: number | undefined;
  readonly stop: readonly string[];
  readonly tenant?: string | undefined;
  readonly session?: string | undefined;
  readonly priority?: string | undefined;
  readonly requestId?: string | undefined;
  /** Deadline of the request, s. */
  readonly timeout: number;
  readonly resume?: string | undefined;
  readonly json?: boolean | undefined;
}

/** Longest prompt that is read from stdin, characters. */
const stdinMax = 64 * 1024 * 1024;

/**
 * `kvmesh generate`: one request over gRPC, its text on stdout as it comes, what it took on stderr. Ctrl-C ends it at the relay. Exit
 * code 0 for a complete answer, 1 for a failure, 130 or 143 when interrupted.
 */
export async function generateCommand(
  text: string,
  options: GenerateCommandOptions,
  io: CommandIo,
): Promise<number> {
  const { addresses, model } = whereTo(options);
  const request = requestOf(text === "-" ? await readStdin() : text, model, options);
  const caller = new InferenceCaller(addresses);
  const interrupts = new Interrupts(() => process.exit(130));
  const json = options.json === true;
  const answer = new Answer(json ? undefined : process.stdout);
  try {
    const generated = await caller.generate(request, {
      timeoutMs: options.timeout * 1_000,
      signal: interrupts.signal,
      onStarted: (started) => {
        answer.started(started);
      },
      onTokens: ({ text: more, ids }) => answer.add(more, ids),
      ...(options.resume === undefined ? {} : { resumeToken: options.resume }),
    });
    answer.end();
    const done = answer.finished(generated);
    if (json) io.out(JSON.stringify({ schema: 1, ...done, text: answer.text, ids: answer.ids }));
    else for (const line of finishedLines(done)) io.err(line);
    return exitCodes.done;
  } catch (error) {
    answer.end();
    if (!(error instanceof InferenceError)) throw error;
    if (json) {
      const { requestId } = error;
      const { text: given, ids } = answer;
      io.out(JSON.stringify({ schema: 1, requestId, text: given, ids, error: failureJson(error) }));
    } else for (const line of failureLines(error)) io.err(line);
    return interrupts.signal.aborted ? interrupts.exitCode : exitCodes.failed;
  } finally {
    interrupts.release();
    caller.close();
  }
}

function whereTo(options: GenerateCommandOptions): {
  readonly addresses: readonly string[];
  readonly model: string;
} {
  const { relay, model, state } = options;
  if (relay.length > 0) {
    if (model !== undefined) return { addresses: relay, model };
    throw new MeshError("invalid_request", "name a model with --model where relays are named");
  }
  const run = requireRun({ state });
  const addresses = run.relays.map(({ h2 }) => h2);
  if (addresses.length === 0) {
    throw new MeshError(
      "not_found",
      'this mesh runs no relay: start it with "kvmesh up --set relays=1", or name one with --relay host:port',
    );
  }
  const named = model ?? run.model;
  if (named === "") {
    throw new MeshError(
      "invalid_request",
      "this mesh does not say its model: name it with --model",
    );
  }
  return { addresses, model: named };
}

function requestOf(text: string, model: string, options: GenerateCommandOptions): GenerateRequest {
  const { maxTokens, temperature, seed } = options;
  return {
    requestId: options.requestId ?? "",
    model,
    input:
      options.chat === true
        ? { $case: "messages", value: { messages: [{ role: "user", content: text }] } }
        : { $case: "text", value: text },
    sampling: {
      stop: [...options.stop],
      stopTokenIds: [],
      ...(maxTokens === undefined ? {} : { tokensMax: maxTokens }),
      ...(temperature === undefined ? {} : { temperature }),
      ...(seed === undefined ? {} : { seed: BigInt(seed) }),
    },
    tenant: options.tenant ?? "",
    session: options.session ?? "",
    priority: options.priority ?? "",
  };
}

async function readStdin(): Promise<string> {
  let text = "";
  process.stdin.setEncoding("utf8");
  for await (const piece of process.stdin as AsyncIterable<string>) {
    text += piece;
    if (text.length > stdinMax) {
      throw new MeshError("invalid_request", `stdin has more than ${String(stdinMax)} characters`);
    }
  }
  return text;
}

const reasons: Readonly<Record<FinishReason, string>> = {
  [FinishReason.FINISH_REASON_UNSPECIFIED]: "other",
  [FinishReason.FINISH_REASON_STOP]: "stop",
  [FinishReason.FINISH_REASON_LENGTH]: "length",
  [FinishReason.FINISH_REASON_OTHER]: "other",
};

/** What has come of an answer; written out as it comes where there is a stream for it. */
class Answer {
  readonly #out: NodeJS.WriteStream | undefined;
  readonly #beganAt = realClock.now();
  #started: Started | undefined;
  #firstAt: number | undefined;
  text = "";
  readonly ids: number[] = [];

  constructor(out: NodeJS.WriteStream | undefined) {
    this.#out = out;
  }

  started(started: Started): void {
    this.#started = started;
  }

  /** Resolves when the terminal has taken it, so that a slow one slows the stream. */
  async add(text: string, ids: readonly number[]): Promise<void> {
    this.#firstAt ??= realClock.now();
    this.text += text;
    this.ids.push(...ids);
    const out = this.#out;
    if (out === undefined || text === "" || out.write(text)) return;
    await new Promise<void>((resolve) => out.once("drain", resolve));
  }

  /** Ends the last line. */
  end(): void {
    if (this.text !== "" && !this.text.endsWith("\n")) this.#out?.write("\n");
  }

  finished({ requestId, reason, usage, resumes }: Generated): FinishedRequest {
    const firstAt = this.#firstAt;
    return {
      requestId,
      decisionId: this.#started?.decisionId ?? "",
      finishReason: reasons[reason],
      usage: usage ?? { promptTokens: 0, cachedTokens: 0, completionTokens: 0 },
      guarded: this.#started?.guarded === true,
      unguardedReason: this.#started?.unguardedReason ?? "",
      resumes,
      ttftMs: firstAt === undefined ? undefined : firstAt - this.#beganAt,
      durationMs: realClock.now() - this.#beganAt,
    };
  }
}
