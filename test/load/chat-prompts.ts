import { SeededRandom } from "../../services/shared/core/random.ts";
import type { NaturalText } from "./natural-text.ts";

/** One turn of a chat. */
export interface Turn {
  readonly role: "user" | "assistant";
  readonly content: string;
}

interface MeasuredTurn extends Turn {
  /** Size in the JSON body, bytes. */
  readonly bytes: number;
}

/** A chat request as bytes and as what they say. */
export interface ChatPrompt {
  readonly turns: readonly Turn[];
  /** The JSON body. */
  readonly body: Buffer;
  /** Bytes of the body whose text no earlier prompt had. */
  readonly unseenBytes: number;
  /** Whether it begins like an earlier prompt. */
  readonly sharesPrefix: boolean;
}

/** Share of prompts that begin like an earlier one. */
const sharingShare = 0.8;
/** Share of a body that a prompt takes over from the earlier one at most; it ends with a whole turn. */
const prefixShareMax = 0.925;
/** Share of text never seen before in a prompt that begins anew; the rest is text of earlier prompts. */
const unseenShare = 0.5;
/** Earlier prompts that later ones may continue. */
const rememberedMax = 64;
const turnOverheadBytes = '{"role":"assistant","content":""},'.length - 2;

/** Name of the model in every body. */
export const benchModel = "bench-model";

function jsonBytes(text: string): number {
  return Buffer.byteLength(JSON.stringify(text));
}

/**
 * Chats of one body size: 80 % begin like an earlier one and go on with turns of their own, and about a fifth of
 * all bytes is text that has never been sent. Deterministic by the seed and the text.
 */
export class ChatPrompts {
  readonly #text: NaturalText;
  readonly #random: SeededRandom;
  readonly #bodyBytes: number;
  readonly #earlier: (readonly MeasuredTurn[])[] = [];

  constructor(text: NaturalText, options: { readonly bodyBytes: number; readonly seed: number }) {
    this.#text = text;
    this.#random = new SeededRandom(options.seed);
    this.#bodyBytes = options.bodyBytes;
  }

  /** The next prompt. */
  next(): ChatPrompt {
    const sharesPrefix = this.#earlier.length > 0 && this.#random.next() < sharingShare;
    const turns: MeasuredTurn[] = [];
    const frame = JSON.stringify({
      model: benchModel,
      messages: [],
      max_tokens: 256,
      stream: true,
    });
    let room = this.#bodyBytes - frame.length;
    if (sharesPrefix) {
      const earlier = this.#pickEarlier();
      const floor = room * (1 - prefixShareMax);
      for (const turn of earlier) {
        if (room - turn.bytes < floor) break;
        turns.push(turn);
        room -= turn.bytes;
      }
    }
    let unseenBytes = 0;
    while (room > turnOverheadBytes + 8) {
      const unseen = sharesPrefix || this.#random.next() < unseenShare;
      const turn = this.#turn(turns.length, room, unseen);
      turns.push(turn);
      room -= turn.bytes;
      if (unseen) unseenBytes += turn.bytes;
    }
    this.#remember(turns);
    const messages = turns.map(({ role, content }) => ({ role, content }));
    const body = { model: benchModel, messages, max_tokens: 256, stream: true };
    return { turns, body: Buffer.from(JSON.stringify(body)), unseenBytes, sharesPrefix };
  }

  #turn(index: number, room: number, unseen: boolean): MeasuredTurn {
    const size = Math.round(this.#bodyBytes / 24 + this.#random.next() * (this.#bodyBytes / 8));
    let content = unseen ? this.#text.take(size) : this.#quote(size);
    let bytes = jsonBytes(content);
    const roomForText = room - turnOverheadBytes;
    if (bytes > roomForText) {
      content = content.slice(0, Math.floor((content.length * roomForText) / bytes)).toWellFormed();
      bytes = jsonBytes(content);
    }
    const role = index % 2 === 0 ? "user" : "assistant";
    return { role, content, bytes: bytes + turnOverheadBytes };
  }

  /** Text of an earlier prompt, as if somebody had pasted it elsewhere. */
  #quote(size: number): string {
    if (this.#earlier.length === 0) return this.#text.take(size);
    const turns = this.#pickEarlier();
    const { content } = turns[this.#random.int(turns.length)] as MeasuredTurn;
    return content.slice(0, size);
  }

  #pickEarlier(): readonly MeasuredTurn[] {
    return this.#earlier[this.#random.int(this.#earlier.length)] as readonly MeasuredTurn[];
  }

  #remember(turns: readonly MeasuredTurn[]): void {
    if (this.#earlier.length < rememberedMax) this.#earlier.push(turns);
    else this.#earlier[this.#random.int(rememberedMax)] = turns;
  }
}
