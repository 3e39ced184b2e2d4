import type { IncomingHttpHeaders } from "node:http";
import type { Dispatcher } from "undici";
import { isReturned, type HeaderField } from "../core/request/forwarded-headers.ts";
import type { LegOutcome } from "../../shared/core/leg-outcome.ts";

/** What a leg tells its exchange; nothing after `onEnd`, `onFailure` or `abort`. */
export interface LegListener {
  onHead(status: number, headers: IncomingHttpHeaders): void;
  /** A piece of the answer; the memory is the caller's only until it returns to the event loop. */
  onData(chunk: Buffer): void;
  onEnd(): void;
  onFailure(outcome: LegOutcome, why: string): void;
}

/** Why a leg was stopped; engines see a closed connection. */
const stopped = new Error("leg stopped");

/** Failures that say something else than that the engine is lost. */
const outcomes: Readonly<Partial<Record<string, LegOutcome>>> = {
  UND_ERR_CONNECT_TIMEOUT: "timeout",
  // The request itself cannot be sent, to whichever engine.
  UND_ERR_INVALID_ARG: "not_started",
};

/** One request to an engine. */
export class LegCall implements Dispatcher.DispatchHandler {
  readonly #listener: LegListener;
  /** Told once when the leg is over, however it ends. */
  readonly #onOver: () => void;
  #controller: Dispatcher.DispatchController | undefined;
  #isOver = false;
  #isStarting = false;

  constructor(listener: LegListener, onOver: () => void) {
    this.#listener = listener;
    this.#onOver = onOver;
  }

  /** Sends the request. Nothing is told before this has returned. */
  start(
    pool: Dispatcher,
    request: {
      readonly path: string;
      readonly headers: readonly HeaderField[];
      readonly body: Uint8Array;
    },
  ): void {
    this.#isStarting = true;
    pool.dispatch(
      {
        method: "POST",
        path: request.path,
        headers: request.headers.flat(),
        body: request.body,
      },
      this,
    );
    this.#isStarting = false;
  }

  /** Reads no more until `resume`. */
  pause(): void {
    this.#controller?.pause();
  }

  resume(): void {
    this.#controller?.resume();
  }

  /** Stops the leg: its connection is closed, by which the engine knows. The listener hears nothing more. */
  abort(): void {
    if (this.#isOver) return;
    this.#over();
    this.#controller?.abort(stopped);
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#isOver) controller.abort(stopped);
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: IncomingHttpHeaders,
  ): void {
    if (!this.#isOver) this.#listener.onHead(status, headers);
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (!this.#isOver) this.#listener.onData(chunk);
  }

  onResponseEnd(): void {
    if (this.#isOver) return;
    this.#over();
    this.#listener.onEnd();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    if (!this.#isStarting) this.#failed(error);
    else {
      queueMicrotask(() => {
        this.#failed(error);
      });
    }
  }

  #failed(error: Error): void {
    if (this.#isOver) return;
    this.#over();
    const code = "code" in error ? String(error.code) : error.name;
    this.#listener.onFailure(outcomes[code] ?? "lost", `${code}: ${error.message}`);
  }

  #over(): void {
    this.#isOver = true;
    this.#onOver();
  }
}

/** Fields of an engine's answer as the client gets them. */
export function returnedFields(headers: IncomingHttpHeaders): HeaderField[] {
  const fields: HeaderField[] = [];
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || !isReturned(name)) continue;
    if (typeof value === "string") fields.push([name, value]);
    else for (const one of value) fields.push([name, one]);
  }
  return fields;
}
