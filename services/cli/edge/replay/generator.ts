import { monitorEventLoopDelay } from "node:perf_hooks";
import { Pool } from "undici";
import type { Clock } from "../../../shared/core/clock.ts";
import { PromptText } from "../../../shared/core/workload/text.ts";
import type { Workload } from "../../../shared/core/workload/workload.ts";
import { realClock } from "../../../shared/edge/clock.ts";
import type { LatencyTargets } from "../../core/replay/goodput.ts";
import type { RequestErrorKind, RequestRecord } from "../../core/replay/outcome.ts";
import { apiPaths, requestBody } from "../../core/replay/request-body.ts";
import { summariseRun, type ReplayResult } from "../../core/replay/result.ts";
import { buildSchedule, type Schedule } from "../../core/replay/schedule.ts";
import { Exchange, type AnswerCheck } from "./exchange.ts";
import { MachineCpu } from "./machine-cpu.ts";

/** How a run goes on, for a progress bar. */
export interface ReplayProgress {
  readonly phase: "warm-up" | "measuring" | "draining";
  readonly elapsedMs: number;
  readonly durationMs: number;
  readonly due: number;
  readonly sent: number;
  readonly ended: number;
  readonly errors: number;
  readonly open: number;
}

/** A run of a workload against one OpenAI endpoint. */
export interface ReplayOptions {
  readonly workload: Workload;
  /** Root of the endpoint, such as `http://127.0.0.1:8080`; a trailing `/v1` is understood. */
  readonly url: string;
  readonly model: string;
  /** The workload's times are divided by this. */
  readonly rateFactor: number;
  /** Default: to the workload's end. */
  readonly durationMs?: number | undefined;
  /** Share of the run that is warm-up; default a third. */
  readonly warmupRatio?: number;
  /** Default `completions`. */
  readonly api?: "completions" | "chat";
  /** Counts requests that keep these as goodput. */
  readonly targets?: LatencyTargets | undefined;
  /** More request headers. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Reads every answer in full and judges it; `checkTokenCount` counts tokens. */
  readonly verify?: AnswerCheck | undefined;
  /** Most requests open at once; one more is an `overflow` error and is not sent. Default 4,096. */
  readonly openMax?: number;
  /** Longest wait for the first token; then a `timeout` error. Default 300 s. */
  readonly firstTokenMsMax?: number;
  /** Longest silence inside an answer; then a `timeout` error. Default 60 s. */
  readonly stallMsMax?: number;
  /** How long open requests may go on after the last one was due. Default 120 s. */
  readonly drainMsMax?: number;
  /** Called off: nothing more is sent, open requests end as `stopped`, and the result is not valid. */
  readonly signal?: AbortSignal | undefined;
  /** About four times a second. */
  readonly onProgress?: ((progress: ReplayProgress) => void) | undefined;
  /** Every request's record, as it ends. */
  readonly onRecord?: ((record: RequestRecord) => void) | undefined;
  readonly clock?: Clock;
}

const sweepMs = 250;
const loopDelayResolutionMs = 10;

/** Splits an endpoint into origin and path prefix. Throws `RangeError` when it is no http address. */
function parseEndpoint(url: string): { origin: string; prefix: string } {
  if (!URL.canParse(url)) throw new RangeError(`endpoint ${JSON.stringify(url)} is not a URL`);
  const { origin, pathname, protocol } = new URL(url);
  if (protocol !== "http:" && protocol !== "https:") {
    throw new RangeError(`endpoint ${JSON.stringify(url)} must begin with http:// or https://`);
  }
  return { origin, prefix: pathname.replace(/\/+$/, "").replace(/\/v1$/, "") };
}

/** One run in progress. */
class Run {
  readonly #options: ReplayOptions;
  readonly #clock: Clock;
  readonly #schedule: Schedule;
  readonly #prompts: PromptText;
  readonly #pool: Pool;
  readonly #path: string;
  readonly #headers: Record<string, string>;
  readonly #api: "completions" | "chat";
  readonly #open = new Set<Exchange>();
  readonly #records: RequestRecord[] = [];
  readonly #openMax: number;
  #startMs = 0;
  #sent = 0;
  #errors = 0;
  #wake: (() => void) | undefined;

  constructor(options: ReplayOptions, schedule: Schedule) {
    const { origin, prefix } = parseEndpoint(options.url);
    this.#options = options;
    this.#clock = options.clock ?? realClock;
    this.#schedule = schedule;
    this.#prompts = new PromptText(options.workload);
    this.#api = options.api ?? "completions";
    this.#path = prefix + apiPaths[this.#api];
    this.#openMax = options.openMax ?? 4_096;
    this.#headers = {
      ...options.headers,
      "content-type": "application/json",
      accept: "text/event-stream",
    };
    // One connection per open request; the pool opens them as needed and never queues below openMax.
    // Its own timeouts are off, since the sweep below ends what takes too long.
    this.#pool = new Pool(origin, {
      connections: this.#openMax,
      pipelining: 1,
      headersTimeout: 0,
      bodyTimeout: 0,
      connect: { timeout: 10_000 },
    });
  }

  #elapsedMs = (): number => this.#clock.now() - this.#startMs;

  async run(): Promise<ReplayResult> {
    const { signal } = this.#options;
    const loopDelay = monitorEventLoopDelay({ resolution: loopDelayResolutionMs });
    loopDelay.enable();
    const machine = new MachineCpu();
    const cpuAtStart = process.cpuUsage();
    this.#startMs = this.#clock.now();
    const sweep = setInterval(() => this.#sweep(), sweepMs);
    const onAbort = (): void => this.#wake?.();
    signal?.addEventListener("abort", onAbort);
    try {
      await this.#sendAll();
      const machineCpuRatio = machine.ratio();
      const drainEndMs = this.#elapsedMs() + (this.#options.drainMsMax ?? 120_000);
      while (this.#open.size > 0 && !this.#isStopped() && this.#elapsedMs() < drainEndMs) {
        await this.#pause(drainEndMs - this.#elapsedMs());
      }
      const stopped = this.#isStopped();
      this.#cancelOpen(
        stopped ? "stopped" : "unfinished",
        stopped ? "the run was called off" : "still open when the run's last wait ended",
      );
      const cpu = process.cpuUsage(cpuAtStart);
      const { workload, url, model, rateFactor, targets } = this.#options;
      this.#records.sort((a, b) => a.index - b.index);
      return summariseRun(this.#records, {
        workload: workload.name,
        url,
        model,
        api: this.#api,
        rateFactor,
        ratePerSecond: this.#schedule.ratePerSecond,
        durationMs: this.#schedule.durationMs,
        warmupMs: this.#schedule.warmupMs,
        // The histogram holds the whole time between two ticks of its own timer.
        eventLoopDelayMsP99: Math.max(0, loopDelay.percentile(99) / 1e6 - loopDelayResolutionMs),
        cpuMs: (cpu.user + cpu.system) / 1_000,
        wallMs: this.#elapsedMs(),
        machineCpuRatio,
        targets,
        stopped,
      });
    } finally {
      loopDelay.disable();
      clearInterval(sweep);
      signal?.removeEventListener("abort", onAbort);
      await this.#pool.destroy();
    }
  }

  #isStopped(): boolean {
    return this.#options.signal?.aborted === true;
  }

  /** Waits for `ms`, or until something ends or the run is called off. */
  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(wake, Math.max(0, ms));
      function wake(): void {
        clearTimeout(timer);
        resolve();
      }
      this.#wake = wake;
      if (this.#isStopped()) wake();
    });
  }

  async #sendAll(): Promise<void> {
    const { dueMs, durationMs } = this.#schedule;
    while (this.#sent < dueMs.length && !this.#isStopped()) {
      // Made before it is due, so that making it delays nothing.
      const made = this.#make(this.#sent);
      for (;;) {
        const waitMs = (dueMs[this.#sent] as number) - this.#elapsedMs();
        if (waitMs <= 0 || this.#isStopped()) break;
        await this.#pause(waitMs);
      }
      if (!this.#isStopped()) this.#send(this.#sent++, made);
    }
    while (!this.#isStopped() && this.#elapsedMs() < durationMs) {
      await this.#pause(durationMs - this.#elapsedMs());
    }
  }

  #make(index: number): { prompt: string; outputTokens: number; body: string } {
    const { model, verify, workload } = this.#options;
    const { outputTokens } = workload.requests[index] as { outputTokens: number };
    const prompt = this.#prompts.prompt(index);
    const withTokenIds = verify !== undefined;
    const body = requestBody({ api: this.#api, model, prompt, outputTokens, withTokenIds });
    return { prompt: withTokenIds ? prompt : "", outputTokens, body };
  }

  #send(index: number, made: { prompt: string; outputTokens: number; body: string }): void {
    const dueMs = this.#schedule.dueMs[index] as number;
    const exchange = new Exchange({
      index,
      dueMs,
      sentMs: this.#elapsedMs(),
      isWarmup: dueMs < this.#schedule.warmupMs,
      outputTokens: made.outputTokens,
      prompt: made.prompt,
      check: this.#options.verify,
      now: this.#elapsedMs,
      onEnd: (record) => this.#ended(exchange, record),
    });
    if (this.#open.size >= this.#openMax) {
      exchange.cancel("overflow", `${this.#openMax} requests were already open`);
      return;
    }
    this.#open.add(exchange);
    this.#pool.dispatch(
      { method: "POST", path: this.#path, headers: this.#headers, body: made.body },
      exchange,
    );
  }

  #ended(exchange: Exchange, record: RequestRecord): void {
    this.#open.delete(exchange);
    this.#records.push(record);
    if (record.error !== undefined) this.#errors++;
    this.#options.onRecord?.(record);
    if (this.#sent === this.#schedule.dueMs.length && this.#open.size === 0) this.#wake?.();
  }

  #cancelOpen(kind: RequestErrorKind, detail: string): void {
    for (const exchange of [...this.#open]) exchange.cancel(kind, detail);
  }

  /** Ends what is silent for too long and reports progress. */
  #sweep(): void {
    const nowMs = this.#elapsedMs();
    const firstTokenMsMax = this.#options.firstTokenMsMax ?? 300_000;
    const stallMsMax = this.#options.stallMsMax ?? 60_000;
    for (const exchange of [...this.#open]) {
      const limitMs = exchange.isWaiting ? firstTokenMsMax : stallMsMax;
      if (nowMs - exchange.lastByteMs > limitMs) {
        const what = exchange.isWaiting ? "no token" : "silent";
        exchange.cancel("timeout", `${what} for ${limitMs} ms`);
      }
    }
    const { durationMs, warmupMs, dueMs } = this.#schedule;
    this.#options.onProgress?.({
      phase: nowMs < warmupMs ? "warm-up" : nowMs < durationMs ? "measuring" : "draining",
      elapsedMs: nowMs,
      durationMs,
      due: dueMs.length,
      sent: this.#sent,
      ended: this.#records.length,
      errors: this.#errors,
      open: this.#open.size,
    });
  }
}

/**
 * Replays a workload against an OpenAI endpoint, open loop: every request is sent when it is due,
 * whatever became of those before it, and its latencies count from that moment.
 * Throws `RangeError` for figures out of range; whatever the endpoint does is in the result, not thrown.
 * Shares the event loop it is called on, so run it in a process that does little else.
 */
export async function runReplay(options: ReplayOptions): Promise<ReplayResult> {
  const schedule = buildSchedule(options.workload, {
    rateFactor: options.rateFactor,
    durationMs: options.durationMs,
    warmupRatio: options.warmupRatio ?? 1 / 3,
  });
  return new Run(options, schedule).run();
}
