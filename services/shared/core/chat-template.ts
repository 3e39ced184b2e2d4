import * as jinja from "@huggingface/jinja";
import { normaliseMessages, normaliseTools, type ContentFormat } from "./chat-messages.ts";
import { strip, type StrippedEnds } from "./chat-template-text.ts";
import { MeshError } from "./errors.ts";
import { invariant } from "./invariant.ts";
import { strftimeUtc } from "./strftime.ts";

/**
 * The parts of the template library below its `Template` class, which cannot replace helpers. Typed
 * here because the library's own declarations of them do not resolve under Node's module rules.
 */
interface JinjaRuntime {
  readonly tokenize: (source: string, options: object) => unknown;
  readonly parse: (tokens: unknown) => TemplateSyntax;
  readonly Environment: new () => { set(name: string, value: unknown): void };
  readonly Interpreter: new (environment: unknown) => {
    run(program: TemplateSyntax): { readonly value: unknown };
  };
}

/** A parsed template: the syntax tree of the template library. */
export interface TemplateSyntax {
  readonly body: readonly unknown[];
}

const { tokenize, parse, Environment, Interpreter } = jinja as unknown as JinjaRuntime;

/** Texts of the special tokens a template may name (`bos_token`, `eos_token`, …). */
export interface SpecialTokens {
  readonly bos?: string;
  readonly eos?: string;
  readonly pad?: string;
  readonly unk?: string;
}

/** Options of one rendering. */
export interface RenderOptions {
  /** Tool definitions in the OpenAI shape. */
  readonly tools?: unknown;
  /** Whether to open the assistant's turn at the end; default false. */
  readonly addGenerationPrompt?: boolean;
  /** Whether to leave the last message open, so that the model continues it; default false. */
  readonly continueFinalMessage?: boolean;
  /** Variables for the template (`chat_template_kwargs`, such as `enable_thinking`). */
  readonly kwargs?: Readonly<Record<string, unknown>>;
  /** The wall time that `strftime_now` tells, ms since 1970, in UTC. Needed by templates that ask. */
  readonly wallUnixMs?: number;
}

/** Longest template source read, UTF-16 units; the longest in use have about 20 000. */
export const templateSizeMax = 1 << 20;

/**
 * A model's chat template (Jinja), rendered as engines render it: the same helpers and white space
 * rules as the `transformers` library, the same treatment of messages as vLLM. Parsed once.
 *
 * One difference: numbers lose their spelling in JSON (`1.0` becomes `1`), as JavaScript reads them.
 */
export class ChatTemplate {
  /** What the template makes of message content. */
  readonly contentFormat: ContentFormat;
  /** The parsed template, for those that render without the template library. */
  readonly syntax: TemplateSyntax;
  /** Texts of the special tokens that the template may name. */
  readonly specialTokens: SpecialTokens;

  /** Throws `invalid_request` when the source is too long or not a template. */
  constructor(source: string, specialTokens: SpecialTokens = {}) {
    if (source.length > templateSizeMax) {
      throw new MeshError(
        "invalid_request",
        `chat template has ${String(source.length)} characters, more than ${String(templateSizeMax)}`,
        { field: "chat_template" },
      );
    }
    try {
      this.syntax = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
    } catch (cause) {
      throw templateError("chat template cannot be parsed", cause);
    }
    this.contentFormat = iteratesContent(this.syntax) ? "parts" : "string";
    callStripHelpers(this.syntax);
    this.specialTokens = specialTokens;
  }

  /**
   * The prompt text of a conversation. Throws `invalid_request`: for messages that the template refuses
   * (`raise_exception`) or fails on, naming a field where one is known, and for contradicting options.
   */
  render(messages: readonly unknown[], options: RenderOptions = {}): string {
    const { addGenerationPrompt = false, continueFinalMessage = false } = options;
    if (addGenerationPrompt && continueFinalMessage) {
      throw new MeshError(
        "invalid_request",
        "add_generation_prompt and continue_final_message exclude each other; set one",
        { field: "continue_final_message" },
      );
    }
    const conversation = normaliseMessages(messages, this.contentFormat);
    const variables: Record<string, unknown> = {
      bos_token: this.specialTokens.bos,
      eos_token: this.specialTokens.eos,
      pad_token: this.specialTokens.pad,
      unk_token: this.specialTokens.unk,
      ...options.kwargs,
      ...helpers(options.wallUnixMs),
      messages: conversation,
      tools: normaliseTools(options.tools) ?? null,
      add_generation_prompt: addGenerationPrompt,
    };
    const text = this.#run(variables);
    return continueFinalMessage ? cutAfterFinalMessage(text, conversation.at(-1)) : text;
  }

  #run(variables: Readonly<Record<string, unknown>>): string {
    try {
      const environment = new Environment();
      for (const [name, value] of Object.entries(variables)) {
        if (value !== undefined) environment.set(name, value);
      }
      const result = new Interpreter(environment).run(this.syntax);
      invariant(typeof result.value === "string", "a template renders to a string");
      return result.value;
    } catch (error) {
      if (error instanceof MeshError) throw error;
      throw templateError("chat template cannot be rendered for these messages", error);
    }
  }
}

function templateError(fact: string, cause: unknown): MeshError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new MeshError("invalid_request", `${fact}: ${reason}`, { cause, field: "chat_template" });
}

/** The functions and constants that `transformers` gives to templates. */
function helpers(wallUnixMs: number | undefined): Record<string, unknown> {
  return {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range: (...bounds: number[]): number[] => {
      const [start, stop, step] =
        bounds.length === 1
          ? [0, bounds[0] ?? 0, 1]
          : [bounds[0] ?? 0, bounds[1] ?? 0, bounds[2] ?? 1];
      const length = step === 0 ? 0 : Math.max(0, Math.ceil((stop - start) / step));
      if (length > rangeLengthMax) throw new Error(`range() of ${String(length)} is too long`);
      return Array.from({ length }, (_, i) => start + i * step);
    },
    raise_exception: (message: unknown): never => {
      throw new MeshError(
        "invalid_request",
        `chat template refuses the messages: ${String(message)}`,
        {
          field: "messages",
        },
      );
    },
    ...stripHelpers,
    strftime_now: (format: string): string => {
      if (wallUnixMs === undefined)
        throw new Error("the template asks for the time and none is given");
      return strftimeUtc(format, wallUnixMs);
    },
  };
}

/**
 * The template library strips white space whatever it is told to strip, and JavaScript's. So the syntax tree is made to
 * call helpers instead; no template can use their names, as they are no identifiers.
 */
const stripHelpers = Object.fromEntries(
  (["strip", "lstrip", "rstrip"] as const).map((ends) => [
    `${ends}()`,
    (text: unknown, characters?: unknown): string => stripped(ends, text, characters),
  ]),
);

/** The ends that a helper strips, by its name in the syntax tree; undefined for other names. */
export function strippedEndsOf(name: string): StrippedEnds | undefined {
  return (["strip", "lstrip", "rstrip"] as const).find((ends) => name === `${ends}()`);
}

function stripped(ends: StrippedEnds, text: unknown, characters: unknown): string {
  if (typeof text !== "string") throw new Error(`${ends} needs a text`);
  if (characters === undefined || characters === null) return strip(text, ends);
  if (typeof characters === "string") return strip(text, ends, characters);
  throw new Error(`${ends} strips characters of a text`);
}

function callStripHelpers(program: unknown): void {
  for (const node of [...nodesOf(program)]) {
    const property = isNode(node["callee"]) ? node["callee"]["property"] : undefined;
    const method = nameOf(property);
    if (node["type"] === "CallExpression" && isNode(node["callee"]) && isStrip(method)) {
      const { object, computed } = node["callee"];
      const args = node["args"] as readonly unknown[];
      if (computed === true || args.length > 1) continue;
      Object.assign(node, {
        callee: { ...(property as Node), value: `${method}()` },
        args: [object, ...args],
      });
    } else if (node["type"] === "FilterExpression" && nameOf(node["filter"]) === "trim") {
      const callee = { ...(node["filter"] as Node), value: "strip()" };
      Object.assign(node, { type: "CallExpression", callee, args: [node["operand"]] });
    }
  }
}

function isStrip(name: string | undefined): name is StrippedEnds {
  return name === "strip" || name === "lstrip" || name === "rstrip";
}

/** Longest list a template's `range` makes, so that a template cannot fill memory. */
const rangeLengthMax = 100_000;

/**
 * Cuts the rendered text behind the final message, as `transformers` does for
 * `continue_final_message`: at its last occurrence, with the white space around it where the template
 * kept it.
 */
function cutAfterFinalMessage(text: string, message: Record<string, unknown> | undefined): string {
  const content = message?.["content"];
  const parts: readonly unknown[] = Array.isArray(content) ? content : [];
  const last = parts.at(-1);
  const final =
    typeof content === "string"
      ? content
      : typeof last === "object" && last !== null && "text" in last
        ? last.text
        : undefined;
  const at = typeof final === "string" ? text.lastIndexOf(final.trim()) : -1;
  if (typeof final !== "string" || at < 0) {
    throw new MeshError(
      "invalid_request",
      "continue_final_message needs a last message whose text the chat template repeats",
      { field: "continue_final_message" },
    );
  }
  const spaced = final.trimStart();
  return text.slice(0, at + (text.startsWith(spaced, at) ? spaced.length : final.trim().length));
}

/** A node of the template's syntax tree, as far as we look at it. */
type Node = Readonly<Record<string, unknown>>;

function isNode(value: unknown): value is Node {
  return typeof value === "object" && value !== null && "type" in value;
}

function* nodesOf(value: unknown): Generator<Node> {
  if (Array.isArray(value) || value instanceof Map) {
    for (const item of value as Iterable<unknown>) yield* nodesOf(item);
  } else if (isNode(value)) {
    yield value;
    for (const child of Object.values(value)) yield* nodesOf(child);
  }
}

/** The expression below filters, tests, slices and loop conditions. */
function core(node: unknown): unknown {
  if (!isNode(node)) return node;
  if (node["type"] === "FilterExpression" || node["type"] === "TestExpression")
    return core(node["operand"]);
  if (node["type"] === "SelectExpression") return core(node["lhs"]);
  const property = node["property"];
  if (
    node["type"] === "MemberExpression" &&
    isNode(property) &&
    property["type"] === "SliceExpression"
  ) {
    return core(node["object"]);
  }
  return node;
}

function nameOf(node: unknown): string | undefined {
  return isNode(node) && node["type"] === "Identifier" ? String(node["value"]) : undefined;
}

/**
 * Whether a template loops over the content of a message, which means that it wants parts (the rule
 * vLLM detects the content format by): `for part in message.content` inside a loop over `messages` or a
 * variable set from it, or over something named `content`.
 */
function iteratesContent(program: unknown): boolean {
  const nodes = [...nodesOf(program)];
  const lists = new Set(["messages"]);
  for (const node of nodes) {
    const source = nameOf(core(node["value"]));
    const target = nameOf(node["assignee"]);
    if (
      node["type"] === "Set" &&
      source !== undefined &&
      target !== undefined &&
      lists.has(source)
    ) {
      lists.add(target);
    }
  }
  const loops = nodes.filter((node) => node["type"] === "For");
  const items = new Set<string>();
  for (const loop of loops) {
    const list = nameOf(core(loop["iterable"]));
    const item = nameOf(loop["loopvar"]);
    if (list !== undefined && item !== undefined && lists.has(list)) items.add(item);
  }
  return loops.some((loop) => {
    const iterable = core(loop["iterable"]);
    if (nameOf(iterable) === "content") return true;
    if (!isNode(iterable) || iterable["type"] !== "MemberExpression") return false;
    const property = iterable["property"];
    const item = nameOf(iterable["object"]);
    return (
      item !== undefined && items.has(item) && isNode(property) && property["value"] === "content"
    );
  });
}
