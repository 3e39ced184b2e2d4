import type { Link } from "./prompt-chain.ts";
import type { PromptText } from "./prompt-text.ts";
import type { SlotAnswer, TextStep } from "./template-text.ts";

/**
 * How chats of one shape are rendered: what the template asks of their texts and, if the answers are the same, what the prompt
 * is made of.
 */
export interface RenderingPlan {
  /** All of a chat that is no text (`ChatShape`). */
  readonly shape: Int32Array;
  readonly steps: readonly TextStep[];
  readonly links: readonly Link[];
}

/** Plans of one shape: texts may answer differently. */
const plansPerShapeMax = 8;
/** Memory for plans, and that of their parts, bytes; estimates. */
const plansBytesMax = 8 << 20;
const planBytes = 400;
const stepBytes = 96;
const linkBytes = 40;

/** Whether texts, those of the request first, answer as a plan expects. Appends texts that are made of them. */
export function answersAlike(
  steps: readonly TextStep[],
  texts: PromptText[],
  bind: () => void,
): boolean {
  for (const { slot, question, expected } of steps) {
    const text = texts[slot] as PromptText;
    let answer = text.known(question);
    if (answer === undefined) {
      bind();
      answer = text.answer(question);
    }
    if (typeof answer === "boolean" || answer === null || answer === "") {
      if (answer !== expected) return false;
    } else if (typeof expected !== "object" || expected === null) return false;
    else if (typeof answer === "number") {
      if (!("length" in expected) || expected.length !== answer) return false;
    } else if (!("slots" in expected) || !takeTexts(expected, answer, texts)) return false;
  }
  return true;
}

function takeTexts(
  { slots, isList }: SlotAnswer,
  answer: PromptText | readonly (PromptText | "")[],
  texts: PromptText[],
): boolean {
  const made = Array.isArray(answer) ? (answer as readonly (PromptText | "")[]) : undefined;
  if ((made !== undefined) !== isList) return false;
  if (made === undefined) {
    texts.push(answer as PromptText);
    return true;
  }
  if (made.length !== slots.length) return false;
  for (let i = 0; i < made.length; i++) {
    const text = made[i] as PromptText | "";
    if ((text === "") !== (slots[i] === "")) return false;
    if (text !== "") texts.push(text);
  }
  return true;
}

/** Plans by shape; forgotten all at once when they take too much memory. */
export class RenderingPlans {
  readonly #plans = new Map<number, RenderingPlan[]>();
  #bytes = 0;

  /** Plans of the shape in `cells[0 … size)`; `hash` is of these. */
  of(cells: Int32Array, size: number, hash: number): readonly RenderingPlan[] {
    const plans = this.#plans.get(hash);
    const [first] = plans ?? [];
    return plans !== undefined && first !== undefined && isSame(first.shape, cells, size)
      ? plans
      : none;
  }

  /** Remembers a plan. Of two shapes with one hash the later one is kept. */
  add(plan: RenderingPlan, hash: number): void {
    if (this.#bytes > plansBytesMax) {
      this.#plans.clear();
      this.#bytes = 0;
    }
    const { shape, steps, links } = plan;
    let plans = this.#plans.get(hash);
    if (plans?.[0] === undefined || !isSame(plans[0].shape, shape, shape.length)) {
      plans = [];
      this.#plans.set(hash, plans);
    }
    if (plans.length >= plansPerShapeMax) plans.shift();
    plans.push(plan);
    this.#bytes +=
      planBytes + 4 * shape.length + stepBytes * steps.length + linkBytes * links.length;
  }
}

const none: readonly RenderingPlan[] = [];

function isSame(shape: Int32Array, cells: Int32Array, size: number): boolean {
  if (shape.length !== size) return false;
  for (let i = 0; i < size; i++) if (shape[i] !== cells[i]) return false;
  return true;
}
