import { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { NameTable } from "../../../shared/core/json-scan/name-table.ts";
import { notScanned } from "../../../shared/core/json-scan/text-scanner.ts";

/** What an event of a stream is: tokens or nothing of one choice, usage, an error of the engine, the end, a comment. */
export type ChunkKind = "choice" | "usage" | "error" | "done" | "comment" | "unknown";

const names = new NameTable([
  ...["id", "object", "created", "model", "choices", "usage", "error", "prompt_token_ids"],
  ...["index", "text", "delta", "content", "role", "finish_reason", "stop_reason", "token_ids"],
  ...["reasoning", "reasoning_content", "tool_calls", "logprobs"],
]);

const encoder = new TextEncoder();
const dataPrefix = encoder.encode("data: ");
const doneText = encoder.encode("[DONE]");

function startsAt(bytes: Uint8Array, at: number, text: Uint8Array): boolean {
  for (let i = 0; i < text.length; i++) if (bytes[at + i] !== text[i]) return false;
  return true;
}

/**
 * Finds in one event what a guard needs, as places in its bytes: nothing is parsed, no object is made. The fields hold
 * the event read last; a place is 0 for what is not there (no value is at 0). Strict: anything unusual is `unknown`.
 */
export class ChunkScanner {
  readonly #json = new JsonScanner(new Int32Array(8), 0);
  #loaded: Uint8Array | undefined;
  bytes: Uint8Array = new Uint8Array(0);
  /** The JSON object of the event. */
  from = 0;
  to = 0;
  /** Values of `id`, `object`, `created` and `model`. */
  idFrom = 0;
  idTo = 0;
  createdFrom = 0;
  createdTo = 0;
  modelFrom = 0;
  modelTo = 0;
  /** Literal of the text, its quotes included: `text` of a completion, `content` of a chat. */
  textFrom = 0;
  textTo = 0;
  finishFrom = 0;
  finishTo = 0;
  stopFrom = 0;
  stopTo = 0;
  /** Value of `token_ids`, and all of the field with a comma. */
  tokensFrom = 0;
  tokensTo = 0;
  tokensCutFrom = 0;
  tokensCutTo = 0;
  promptFrom = 0;
  promptTo = 0;
  promptCutFrom = 0;
  promptCutTo = 0;
  /** Whether there is an answer of a kind that cannot be continued. */
  hasReasoning = false;
  hasToolCalls = false;

  /** Whether the text has no character. */
  get isTextEmpty(): boolean {
    return this.textTo - this.textFrom <= 2;
  }

  /** Whether the choice ends here. */
  get isFinished(): boolean {
    return this.finishFrom > 0 && this.bytes[this.finishFrom] === 0x22;
  }

  /** Reads the event `bytes[from, to)`. */
  read(bytes: Uint8Array, from: number, to: number): ChunkKind {
    if (bytes[from] === 0x3a) return "comment";
    if (!startsAt(bytes, from, dataPrefix)) return "unknown";
    const start = from + dataPrefix.length;
    if (to - start === doneText.length && startsAt(bytes, start, doneText)) return "done";
    if (this.#loaded !== bytes) {
      this.#json.load(bytes);
      this.#loaded = bytes;
    }
    this.#clear();
    this.bytes = bytes;
    this.from = start;
    this.to = to;
    return this.#event(start, to);
  }

  /** Lets go of the bytes read last. */
  release(): void {
    this.#loaded = undefined;
    this.bytes = new Uint8Array(0);
  }

  #clear(): void {
    this.idFrom = this.createdFrom = this.modelFrom = this.textFrom = this.finishFrom = 0;
    this.textTo = this.stopFrom = this.tokensFrom = this.tokensTo = this.promptFrom = 0;
    this.tokensCutFrom = this.promptCutFrom = 0;
    this.hasReasoning = this.hasToolCalls = false;
  }

  #event(start: number, to: number): ChunkKind {
    const json = this.#json;
    const { bytes } = this;
    let kind: ChunkKind = "unknown";
    let before = start;
    let at = start;
    if (bytes[at] !== 0x7b) return "unknown";
    at = json.space(at + 1);
    if (bytes[at] === 0x7d) return "unknown";
    for (;;) {
      const key = at;
      const name = names.read(bytes, at);
      if (name === undefined) return "unknown";
      const value = json.colon(names.end);
      if (value === notScanned) return "unknown";
      let end: number;
      if (name === "choices") {
        end = this.#choices(value);
        if (end === notScanned) return "unknown";
        kind = this.#isEmptyArray(value, end) ? "usage" : "choice";
      } else {
        end = json.value(value);
        if (end === notScanned) return "unknown";
        if (name === "id") [this.idFrom, this.idTo] = [value, end];
        else if (name === "created") [this.createdFrom, this.createdTo] = [value, end];
        else if (name === "model") [this.modelFrom, this.modelTo] = [value, end];
        else if (name === "error" && bytes[value] === 0x7b) return "error";
        else if (name === "prompt_token_ids" && bytes[value] === 0x5b) {
          this.#promptIds(before, key, value, end);
        }
      }
      before = end;
      at = json.space(end);
      if (bytes[at] === 0x7d) return at + 1 === to ? kind : "unknown";
      if (bytes[at] !== 0x2c) return "unknown";
      at = json.space(at + 1);
    }
  }

  #isEmptyArray(from: number, to: number): boolean {
    return this.#json.space(from + 1) === to - 1;
  }

  /** A field goes with the comma before it, or as the first one with the comma after it. */
  #promptIds(before: number, key: number, value: number, end: number): void {
    this.promptFrom = value;
    this.promptTo = end;
    const isFirst = this.bytes[before] === 0x7b;
    this.promptCutFrom = isFirst ? key : before;
    const next = this.#json.space(end);
    this.promptCutTo = isFirst && this.bytes[next] === 0x2c ? next + 1 : end;
  }

  #tokenIds(before: number, key: number, value: number, end: number): void {
    this.tokensFrom = value;
    this.tokensTo = end;
    const isFirst = this.bytes[before] === 0x7b;
    this.tokensCutFrom = isFirst ? key : before;
    const next = this.#json.space(end);
    this.tokensCutTo = isFirst && this.bytes[next] === 0x2c ? next + 1 : end;
  }

  /** An array of at most one choice. */
  #choices(from: number): number {
    const json = this.#json;
    const { bytes } = this;
    if (bytes[from] !== 0x5b) return notScanned;
    let at = json.space(from + 1);
    if (bytes[at] === 0x5d) return at + 1;
    at = this.#choice(at);
    if (at === notScanned) return notScanned;
    at = json.space(at);
    return bytes[at] === 0x5d ? at + 1 : notScanned;
  }

  #choice(from: number): number {
    const json = this.#json;
    const { bytes } = this;
    if (bytes[from] !== 0x7b) return notScanned;
    let before = from;
    let at = json.space(from + 1);
    for (;;) {
      const key = at;
      const name = names.read(bytes, at);
      if (name === undefined) return notScanned;
      const value = json.colon(names.end);
      if (value === notScanned) return notScanned;
      const end = name === "delta" ? this.#delta(value) : json.value(value);
      if (end === notScanned) return notScanned;
      const first = bytes[value];
      if (name === "text" && first === 0x22) [this.textFrom, this.textTo] = [value, end];
      else if (name === "finish_reason") [this.finishFrom, this.finishTo] = [value, end];
      else if (name === "stop_reason") [this.stopFrom, this.stopTo] = [value, end];
      else if (name === "token_ids" && first === 0x5b) this.#tokenIds(before, key, value, end);
      else if (name === "prompt_token_ids" && first === 0x5b) {
        this.#promptIds(before, key, value, end);
      } else if (name === "index" && !(first === 0x30 && end === value + 1)) return notScanned;
      before = end;
      at = json.space(end);
      if (bytes[at] === 0x7d) return at + 1;
      if (bytes[at] !== 0x2c) return notScanned;
      at = json.space(at + 1);
    }
  }

  #delta(from: number): number {
    const json = this.#json;
    const { bytes } = this;
    if (bytes[from] !== 0x7b) return notScanned;
    let at = json.space(from + 1);
    if (bytes[at] === 0x7d) return at + 1;
    for (;;) {
      const name = names.read(bytes, at);
      if (name === undefined) return notScanned;
      const value = json.colon(names.end);
      if (value === notScanned) return notScanned;
      const end = json.value(value);
      if (end === notScanned) return notScanned;
      const isNull = bytes[value] === 0x6e;
      if (name === "content" && bytes[value] === 0x22) {
        [this.textFrom, this.textTo] = [value, end];
      } else if ((name === "reasoning" || name === "reasoning_content") && !isNull) {
        this.hasReasoning = true;
      } else if (name === "tool_calls" && !isNull && !this.#isEmptyArray(value, end)) {
        this.hasToolCalls = true;
      }
      at = json.space(end);
      if (bytes[at] === 0x7d) return at + 1;
      if (bytes[at] !== 0x2c) return notScanned;
      at = json.space(at + 1);
    }
  }
}
