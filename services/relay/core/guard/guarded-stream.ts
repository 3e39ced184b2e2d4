import { ChunkScanner } from "./chunk-scanner.ts";
import { EventOutput } from "./event-output.ts";
import type { GuardRequest } from "./guard-request.ts";
import type { UnguardedReason } from "./guard-policy.ts";
import { SseSplitter, type EventTaker } from "./sse-splitter.ts";
import { StopMatcher, type StopState } from "./stop-matcher.ts";
import { TokenList } from "./token-list.ts";

/** What a piece of an engine's stream came to. */
export type GuardVerdict =
  /** The stream goes on. */
  | "more"
  /** Everything is written, the end included; the engine need not go on. */
  | "finished"
  /** The engine failed, for the reason in `failure`. */
  | "failed"
  /** The answer cannot be continued after all, for the reason in `unguardedReason`: its bytes pass from now on. */
  | "unguarded";

/** How a stream goes on after its engine was lost. */
export type Cut =
  /** Nothing was generated yet: the request begins anew. */
  | { readonly kind: "restart" }
  | {
      readonly kind: "continue";
      readonly promptIds: Uint32Array;
      readonly generated: Uint32Array;
      readonly tokensLeft: number | null;
    }
  /** Only the end was missing, and is written. */
  | { readonly kind: "finished" };

/** Where a stream stands between two events, as far as its client has it; what resuming it needs beside the ids. */
export interface StreamPoint {
  /** Tokens that the client has. */
  readonly index: number;
  /** Tokens up to the last place at which text and ids are known to agree. */
  readonly cleanIndex: number;
  /** Text that went out since then. */
  readonly looseText: string;
  /** What the search for stop texts holds; absent without stop texts. */
  readonly stop?: StopState;
  /** Finish reason as JSON, when only the end of the stream is missing. */
  readonly finish?: string;
}

/** Fields of the answer's first chunk that all later ones repeat, as JSON. */
export interface ChunkFrame {
  readonly id: string;
  readonly created: string;
  readonly model: string;
}

/** A stream that another relay began, as its buddy kept it. */
export interface ResumedFrom {
  readonly promptIds: Uint32Array;
  readonly generated: Uint32Array;
  readonly point: StreamPoint;
  readonly frame: ChunkFrame;
  /** W3C context of the request that began it; empty when it was not traced. */
  readonly traceparent: string;
}

/** Options of a guarded stream. */
export interface GuardedStreamOptions {
  readonly request: GuardRequest;
  /** Cached prompt tokens as the prefill leg reported them; -1 when unknown. */
  readonly cachedTokens: number;
  /** Gives the name of an event from the place behind it; nothing for streams that cannot be resumed. */
  readonly nameOf?: (point: StreamPoint) => string | undefined;
  readonly resumed?: ResumedFrom;
}

/** One buffer and one scanner serve all streams: each read is used up before the next. */
const output = new EventOutput();
const scanner = new ChunkScanner();
const decoder = new TextDecoder();

/** Reasons with which engines end what they gave up themselves. */
const givenUp: ReadonlySet<string> = new Set(['"abort"', '"error"']);

/**
 * One stream of tokens to a client, whichever engines generate it. Every token has an index, and what is written is
 * always the next one: tokens of an engine that was given up are forgotten unless they went out, and those that went out
 * are never written again.
 *
 * A token whose text is not complete (the first bytes of a character) does not go out by itself but with the token that
 * completes it, so that what the client has always ends between characters. An engine is continued from the last place
 * at which ids and text are known to agree: behind a chunk of one token that brought text. Where tokens came several in
 * one chunk, the last may hide half a character; if they went out, the next engine's text must begin with theirs.
 *
 * Invariants (guarded-stream.test.ts): the joined output equals that of one engine that was never lost in text, ids,
 * finish reason and usage; indices never jump and never repeat.
 */
export class GuardedStream {
  readonly #request: GuardRequest;
  readonly #cachedTokens: number;
  readonly #nameOf: ((point: StreamPoint) => string | undefined) | undefined;
  /** Whether the last event had a name. */
  #isNamed = false;
  readonly #splitter = new SseSplitter();
  readonly #take: EventTaker = (bytes, from, to) => {
    if (this.#verdict === "more") this.#verdict = this.#event(bytes, from, to);
    else if (this.#verdict === "unguarded") output.copy(bytes, from, to);
  };
  readonly #stops: StopMatcher | undefined;
  readonly #ids = new TokenList();
  #prompt: TokenList | undefined;
  #frame: ChunkFrame | undefined;
  #verdict: GuardVerdict = "more";
  /** Engines that go on in another framing than the first one's. */
  #attempt = 0;
  #losses = 0;
  /** Tokens that went out. */
  #sent = 0;
  #cleanIndex = 0;
  #looseText = "";
  /** Ids that went out behind the clean index, while another engine must give them again. */
  #replayIds: Uint32Array | undefined;
  #replayText = "";
  #finish = "";
  /** Whether the engine's own usage went out. */
  #hasUsage = false;
  #hasEngineEnded = false;
  #failure = "";
  #unguarded: UnguardedReason | undefined;

  constructor(options: GuardedStreamOptions) {
    const { request, resumed } = options;
    this.#request = request;
    this.#cachedTokens = options.cachedTokens;
    this.#nameOf = options.nameOf;
    if (request.stops.length > 0) {
      this.#stops = new StopMatcher({
        stops: request.stops,
        includes: request.includesStop,
        tokensMin: request.tokensMin,
        state: resumed?.point.stop,
      });
    }
    if (resumed === undefined) return;
    this.#prompt = new TokenList(resumed.promptIds.length);
    for (const id of resumed.promptIds) this.#prompt.push(id);
    for (const id of resumed.generated) this.#ids.push(id);
    this.#frame = resumed.frame;
    this.#sent = resumed.point.index;
    this.#cleanIndex = resumed.point.cleanIndex;
    this.#looseText = resumed.point.looseText;
    this.#finish = resumed.point.finish ?? "";
  }

  /** Tokens that went out. */
  get sentCount(): number {
    return this.#sent;
  }

  /** Ids of the tokens generated so far, those that did not go out yet included; a view. */
  get generated(): Uint32Array {
    return this.#ids.ids;
  }

  /** Ids of the prompt, once known; a view. */
  get promptIds(): Uint32Array | undefined {
    return this.#prompt?.ids;
  }

  get frame(): ChunkFrame | undefined {
    return this.#frame;
  }

  /** Engines that were given up, those that had generated nothing included. */
  get losses(): number {
    return this.#losses;
  }

  /** Whether the engine itself said that its stream is over. */
  get hasEngineEnded(): boolean {
    return this.#hasEngineEnded;
  }

  get failure(): string {
    return this.#failure;
  }

  get unguardedReason(): UnguardedReason | undefined {
    return this.#unguarded;
  }

  /** Where the client stands. */
  get point(): StreamPoint {
    return {
      index: this.#sent,
      cleanIndex: this.#cleanIndex,
      looseText: this.#looseText,
      ...(this.#stops === undefined ? {} : { stop: this.#stops.state }),
      ...(this.#finish === "" ? {} : { finish: this.#finish }),
    };
  }

  /** Reads a piece of the present engine's stream; what it comes to for the client is then in `takeOutput`. */
  receive(piece: Uint8Array): GuardVerdict {
    if (!this.#splitter.read(piece, this.#take)) {
      this.#verdict = this.#unguard("unreadable");
    }
    if (this.#verdict === "unguarded") {
      const rest = this.#splitter.takeRest();
      output.buffer.bytes(rest, 0, rest.length);
    }
    scanner.release();
    return this.#verdict;
  }

  /** What is to be sent, as a view that is good until any stream is used again; empty when there is nothing. */
  takeOutput(): Uint8Array {
    return output.buffer.take();
  }

  /** The engine's stream is over. What it owed must have come before. */
  ended(): GuardVerdict {
    if (this.#verdict !== "more") return this.#verdict;
    return this.#fail("the stream ended without its end");
  }

  /** The engine is given up: says how the stream goes on, and prepares for what comes from the next one. */
  cut(): Cut {
    this.#splitter.reset();
    this.#verdict = "more";
    this.#failure = "";
    const { tokensMax } = this.#request;
    if (this.#finish === "" && tokensMax !== null && this.#sent >= tokensMax) {
      this.#ids.cut(this.#sent);
      this.#wrap(this.#stops?.flush() ?? "", '"length"', "null", this.#sent);
      this.#finish = '"length"';
    }
    if (this.#finish !== "") {
      this.#writeEnd(true);
      this.#verdict = "finished";
      return { kind: "finished" };
    }
    this.#losses++;
    if (this.#prompt === undefined) return { kind: "restart" };
    this.#attempt++;
    if (this.#sent > this.#cleanIndex) {
      this.#replayIds ??= this.#ids.ids.slice(this.#cleanIndex, this.#sent);
    }
    this.#replayText = "";
    this.#ids.cut(this.#cleanIndex);
    return {
      kind: "continue",
      promptIds: this.#prompt.ids,
      generated: this.#ids.ids,
      tokensLeft: tokensMax === null ? null : tokensMax - this.#cleanIndex,
    };
  }

  #event(bytes: Uint8Array, from: number, to: number): GuardVerdict {
    const kind = scanner.read(bytes, from, to);
    switch (kind) {
      case "comment":
        output.copy(bytes, from, to);
        return "more";
      case "done":
        if (this.#finish === "") return this.#fail("the stream ended without a finish reason");
        this.#hasEngineEnded = true;
        this.#writeEnd(this.#attempt > 0);
        return "finished";
      case "error":
        return this.#fail(decoder.decode(bytes.subarray(from, Math.min(to, from + 200))));
      case "usage":
        // Behind a change of engines the relay adds up what was used itself.
        if (this.#attempt === 0 && this.#request.tellUsage) {
          this.#hasUsage = true;
          output.copy(bytes, from, to);
        }
        return "more";
      case "unknown":
        return this.#unguard("unreadable", bytes, from, to);
      case "choice":
        return this.#choice(bytes, from, to);
    }
  }

  #choice(bytes: Uint8Array, from: number, to: number): GuardVerdict {
    if (scanner.hasReasoning) return this.#unguard("reasoning", bytes, from, to);
    if (scanner.hasToolCalls) return this.#unguard("tools", bytes, from, to);
    if (this.#prompt === undefined && scanner.promptFrom > 0) {
      const prompt = new TokenList();
      if (!prompt.read(bytes, scanner.promptFrom, scanner.promptTo)) {
        return this.#unguard("no_token_ids", bytes, from, to);
      }
      this.#prompt = prompt;
    }
    this.#frame ??= {
      id: textOf(bytes, scanner.idFrom, scanner.idTo),
      created: textOf(bytes, scanner.createdFrom, scanner.createdTo),
      model: textOf(bytes, scanner.modelFrom, scanner.modelTo),
    };
    const before = this.#ids.length;
    if (scanner.tokensFrom > 0 && !this.#ids.read(bytes, scanner.tokensFrom, scanner.tokensTo)) {
      return this.#unguard("no_token_ids", bytes, from, to);
    }
    const added = this.#ids.length - before;
    const { isFinished, isTextEmpty } = scanner;
    if (isFinished && givenUp.has(textOf(bytes, scanner.finishFrom, scanner.finishTo))) {
      this.#ids.cut(before);
      return this.#fail("the engine gave the request up");
    }
    if (added === 0 && !isFinished) {
      if (!isTextEmpty || this.#prompt === undefined) {
        return this.#unguard("no_token_ids", bytes, from, to);
      }
      // The opening of a chat, which a continuation does not repeat.
      if (this.#attempt === 0 && this.#sent === 0) {
        if (!this.#request.tellIds) output.replace(scanner.promptCutFrom, scanner.promptCutTo);
        output.copy(bytes, from, to);
      }
      return "more";
    }
    if (this.#replayIds !== undefined) return this.#replay(bytes, added, isFinished);
    if (isTextEmpty && !isFinished) return "more";
    if (this.#stops !== undefined) return this.#stopping(bytes, from, to, added);
    const isClean = isFinished || (added === 1 && !isTextEmpty);
    this.#settle(isClean, isClean ? "" : this.#text(bytes));
    if (isFinished) this.#finish = textOf(bytes, scanner.finishFrom, scanner.finishTo);
    if (this.#attempt === 0) this.#pass(bytes, from, to);
    else this.#wrapScanned(bytes);
    this.#sent = this.#ids.length;
    return "more";
  }

  /** Text and ids agree behind this chunk, or its text is remembered until they do. */
  #settle(isClean: boolean, text: string): void {
    if (isClean) {
      this.#cleanIndex = this.#ids.length;
      this.#looseText = "";
    } else this.#looseText += text;
  }

  #text(bytes: Uint8Array): string {
    const { textFrom, textTo } = scanner;
    return textFrom === 0 ? "" : (JSON.parse(textOf(bytes, textFrom, textTo)) as string);
  }

  /** A chunk of a request with stop texts. */
  #stopping(bytes: Uint8Array, from: number, to: number, added: number): GuardVerdict {
    const text = this.#text(bytes);
    const { isFinished } = scanner;
    const isClean = isFinished || (added === 1 && text !== "");
    this.#settle(isClean, isClean ? "" : text);
    return this.#writeText(text, isFinished, bytes, from, to);
  }

  /** Writes a text that is looked through for stop texts first. */
  #writeText(
    text: string,
    isFinished: boolean,
    bytes: Uint8Array,
    from: number,
    to: number,
  ): GuardVerdict {
    const stops = this.#stops;
    const match = stops?.add(text, this.#ids.length) ?? { text, stop: undefined };
    let finish = isFinished ? textOf(bytes, scanner.finishFrom, scanner.finishTo) : "null";
    let reason = scanner.stopFrom > 0 ? textOf(bytes, scanner.stopFrom, scanner.stopTo) : "null";
    let out = match.text;
    if (match.stop !== undefined) {
      finish = '"stop"';
      reason = JSON.stringify(match.stop);
    } else if (isFinished) out += stops?.flush() ?? "";
    if (finish !== "null") this.#finish = finish;
    if (this.#attempt === 0 && from >= 0 && scanner.textFrom > 0) {
      output.replace(scanner.textFrom, scanner.textTo, JSON.stringify(out));
      output.replace(scanner.finishFrom, scanner.finishTo, finish);
      output.replace(scanner.stopFrom, scanner.stopTo, reason);
      this.#pass(bytes, from, to);
    } else this.#wrap(out, finish, reason, this.#ids.length);
    this.#sent = this.#ids.length;
    if (match.stop === undefined) return "more";
    // The engine does not know that it is done.
    this.#writeEnd(true);
    return "finished";
  }

  /** An engine gives again what went out behind the clean index, before it gives more. */
  #replay(bytes: Uint8Array, added: number, isFinished: boolean): GuardVerdict {
    const expected = this.#replayIds as Uint32Array;
    this.#replayText += this.#text(bytes);
    const seen = this.#replayText;
    const loose = this.#looseText;
    const given = this.#ids.length - this.#cleanIndex;
    if (!loose.startsWith(seen) && !seen.startsWith(loose)) {
      return this.#fail("another engine went on with another text");
    }
    if (this.#request.tellIds) {
      const ids = this.#ids.ids;
      for (let i = 0; i < Math.min(given, expected.length); i++) {
        if (ids[this.#cleanIndex + i] !== expected[i]) {
          return this.#fail("another engine went on with other tokens");
        }
      }
    }
    const isShort = given < expected.length || seen.length < loose.length;
    if (isShort && isFinished) return this.#fail("another engine ended before what went out");
    if (isShort || (given === expected.length && !isFinished)) return "more";
    const text = seen.slice(loose.length);
    if (text === "" && !isFinished) return "more";
    this.#replayIds = undefined;
    this.#replayText = "";
    this.#settle(isFinished || added === 1, text);
    return this.#writeText(text, isFinished, bytes, -1, -1);
  }

  /** An engine's chunk as it is, but for ids that nobody asked for. */
  #pass(bytes: Uint8Array, from: number, to: number): void {
    if (!this.#request.tellIds) {
      output.replace(scanner.promptCutFrom, scanner.promptCutTo);
      output.replace(scanner.tokensCutFrom, scanner.tokensCutTo);
    } else if (scanner.tokensFrom > 0) {
      output.replace(scanner.tokensFrom, scanner.tokensTo, this.#newIds());
    }
    this.#name(this.#ids.length);
    output.copy(bytes, from, to);
  }

  /** Ids that go out with the next chunk, as JSON. */
  #newIds(): string {
    return `[${this.#ids.ids.subarray(this.#sent).join(",")}]`;
  }

  #name(index: number): void {
    if (this.#nameOf === undefined) return;
    const name = this.#nameOf({ ...this.point, index });
    // Readers of events keep the last name until another one comes: an empty one takes it back, since a stream that went on
    // from an older place would repeat what came without a name.
    if (name !== undefined) output.name(name);
    else if (this.#isNamed) output.name("");
    this.#isNamed = name !== undefined;
  }

  #wrapScanned(bytes: Uint8Array): void {
    const { textFrom, textTo, finishFrom, finishTo, stopFrom, stopTo } = scanner;
    this.#wrapRaw(
      textFrom === 0 ? '""' : textOf(bytes, textFrom, textTo),
      finishFrom === 0 ? "null" : textOf(bytes, finishFrom, finishTo),
      stopFrom === 0 ? "null" : textOf(bytes, stopFrom, stopTo),
      this.#ids.length,
    );
  }

  #wrap(text: string, finish: string, reason: string, index: number): void {
    this.#wrapRaw(JSON.stringify(text), finish, reason, index);
  }

  /** A chunk of the relay's own in the form in which the stream began; texts are JSON. */
  #wrapRaw(text: string, finish: string, reason: string, index: number): void {
    const isChat = this.#request.kind === "chat";
    const content = isChat ? `"delta":{"content":${text}}` : `"text":${text}`;
    const ids = this.#request.tellIds ? `,"token_ids":${this.#newIds()}` : "";
    this.#name(index);
    output.data(
      `{${this.#head()},"choices":[{"index":0,${content},"logprobs":null,"finish_reason":${finish},"stop_reason":${reason}${ids}}]}`,
    );
  }

  #head(): string {
    const { id, created, model } = this.#frame ?? { id: '""', created: "0", model: '""' };
    const object = this.#request.kind === "chat" ? "chat.completion.chunk" : "text_completion";
    return `"id":${id},"object":"${object}","created":${created},"model":${model}`;
  }

  /** What follows the last token. `own`: with a usage of the relay's own counting. */
  #writeEnd(own: boolean): void {
    if (own && this.#request.tellUsage && !this.#hasUsage) {
      const prompt = this.#prompt?.length ?? 0;
      const count = this.#sent;
      const cached = this.#cachedTokens;
      const details =
        cached < 0 ? "" : `,"prompt_tokens_details":{"cached_tokens":${String(cached)}}`;
      output.data(
        `{${this.#head()},"choices":[],"usage":{"prompt_tokens":${prompt},"total_tokens":${
          prompt + count
        },"completion_tokens":${count}${details}}}`,
      );
    }
    output.data("[DONE]");
  }

  #fail(why: string): "failed" {
    this.#failure = why;
    this.#verdict = "failed";
    return "failed";
  }

  /** Gives the guard up; an event that was not written yet passes as it is. */
  #unguard(reason: UnguardedReason, bytes?: Uint8Array, from = 0, to = 0): "unguarded" | "failed" {
    // A continuation has another framing than the client's stream.
    if (this.#attempt > 0) return this.#fail(`another engine cannot go on: ${reason}`);
    this.#unguarded = reason;
    // What follows has no names, and must not be repeated by who goes on from the last one.
    if (this.#isNamed) output.name("");
    if (bytes !== undefined) output.copy(bytes, from, to);
    return "unguarded";
  }
}

function textOf(bytes: Uint8Array, from: number, to: number): string {
  return decoder.decode(bytes.subarray(from, to));
}
