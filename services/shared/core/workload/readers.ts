import type { Workload } from "./workload.ts";
import { WorkloadBuilder, type WorkloadMeta } from "./workload-builder.ts";
import { RelativeBlocksReader } from "./relative-blocks.ts";
import {
  numberField,
  parseRow,
  rowError,
  textField,
  wholeField,
  wholeListField,
  type RowPlace,
} from "./row-parser.ts";

/** Lines of a file, without line ends, from its first line; blank lines are skipped. */
export type Lines = Iterable<string>;

/** What a reader must be told: the name for messages, and everything of the workload but its requests. */
export interface ReaderOptions {
  readonly file: string;
  readonly meta: WorkloadMeta;
}

/** File formats that are recognised by their first line. */
export type WorkloadFormat = "hash-ids" | "bailian" | "agentic" | "azure" | "prepared";

/**
 * Recognises a file by its first line that is not blank; `undefined` when it is none of ours.
 * `prepared` is `prepared-file.ts`; the others are read by the functions below.
 */
export function detectFormat(firstLine: string): WorkloadFormat | undefined {
  const line = firstLine.trim();
  if (/^timestamp,contexttokens,generatedtokens$/i.test(line)) return "azure";
  if (!line.startsWith("{")) return undefined;
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch {
    // A first line that is no JSON is no JSONL format; the caller names the formats it knows.
    return undefined;
  }
  if (typeof row !== "object" || row === null) return undefined;
  if ("format" in row) return row.format === "kvmesh.workload" ? "prepared" : undefined;
  if ("keep" in row && "runs" in row) return "agentic";
  if (!("input_length" in row)) return undefined;
  return "parent_chat_id" in row ? "bailian" : "hash-ids";
}

/** Calls `visit` for every line that is not blank, with its place. */
export function forEachRow(
  lines: Lines,
  file: string,
  visit: (text: string, place: RowPlace) => void,
): void {
  let line = 0;
  for (const text of lines) {
    line++;
    if (text.trim() !== "") visit(text, { file, line });
  }
}

/** Numbers ids by order of first appearance, so that ids past 32 bits fit too. */
class IdOrdinals {
  readonly #ordinals = new Map<number, number>();

  of(ids: readonly number[]): Uint32Array {
    const result = new Uint32Array(ids.length);
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      let ordinal = this.#ordinals.get(id);
      if (ordinal === undefined) {
        ordinal = this.#ordinals.size;
        this.#ordinals.set(id, ordinal);
      }
      result[i] = ordinal;
    }
    return result;
  }
}

/**
 * Reads JSONL rows `{timestamp (ms), input_length, output_length, hash_ids}`: Mooncake's format (512
 * tokens per block there), which other published traces share. `hash_ids` may be missing (nothing is
 * shared) and may hold any whole numbers; they become numbers in order of first appearance.
 * An `output_length` of 0 becomes 1, since an engine always gives a token.
 */
export function readHashIdRows(lines: Lines, { file, meta }: ReaderOptions): Workload {
  const builder = new WorkloadBuilder(meta);
  const ordinals = new IdOrdinals();
  forEachRow(lines, file, (text, place) => {
    const row = parseRow(text, place);
    const ids = row["hash_ids"] === undefined ? [] : wholeListField(row, "hash_ids", place);
    const session = row["session"] === undefined ? undefined : textField(row, "session", place);
    builder.add(
      {
        atMs: numberField(row, "timestamp", 0, place),
        inputTokens: wholeField(row, "input_length", 1, place),
        outputTokens: Math.max(1, wholeField(row, "output_length", 0, place)),
        blockIds: ordinals.of(ids),
        ...(session === undefined ? {} : { session }),
      },
      place,
    );
  });
  return builder.build();
}

/**
 * Reads the Qwen-Bailian usage traces (alibaba-edu/qwen-bailian-usagetraces-anon): as `hash_ids` rows,
 * but with `timestamp` in seconds, 16 tokens per block, and `chat_id` with `parent_chat_id` (-1 for the
 * first turn), which give the session: the first turn that the chain of parents leads to.
 */
export function readBailianRows(lines: Lines, { file, meta }: ReaderOptions): Workload {
  const builder = new WorkloadBuilder(meta);
  const ordinals = new IdOrdinals();
  const roots = new Map<number, number>();
  forEachRow(lines, file, (text, place) => {
    const row = parseRow(text, place);
    const chat = wholeField(row, "chat_id", 0, place);
    const parent = wholeField(row, "parent_chat_id", -1, place);
    // A parent from before the trace began has no row: the session then starts with that parent.
    const root = parent === -1 ? chat : (roots.get(parent) ?? parent);
    roots.set(chat, root);
    builder.add(
      {
        atMs: numberField(row, "timestamp", 0, place) * 1_000,
        inputTokens: wholeField(row, "input_length", 1, place),
        outputTokens: Math.max(1, wholeField(row, "output_length", 0, place)),
        blockIds: ordinals.of(wholeListField(row, "hash_ids", place)),
        session: String(root),
      },
      place,
    );
  });
  return builder.build();
}

/**
 * Reads the agentic coding stream: JSONL with `session`, and block lists relative to the session's
 * previous request (`keep`, `runs`; see `relative-blocks.ts`), one id per full block, so that the
 * partial block at the end has none. An `output_length` of 0 becomes 1.
 */
export function readAgenticRows(lines: Lines, { file, meta }: ReaderOptions): Workload {
  const builder = new WorkloadBuilder(meta);
  const blocks = new RelativeBlocksReader();
  forEachRow(lines, file, (text, place) => {
    const row = parseRow(text, place);
    const session = textField(row, "session", place);
    const inputTokens = wholeField(row, "input_length", 1, place);
    const expanded = blocks.expand(
      session,
      { keep: wholeField(row, "keep", 0, place), runs: wholeListField(row, "runs", place) },
      Math.ceil(inputTokens / meta.blockTokens),
    );
    if ("problem" in expanded) throw rowError(place, expanded.field, expanded.problem);
    builder.add(
      {
        atMs: numberField(row, "timestamp", 0, place),
        inputTokens,
        outputTokens: Math.max(1, wholeField(row, "output_length", 0, place)),
        blockIds: expanded,
        session,
      },
      place,
    );
  });
  return builder.build();
}

const azureTime = /^(\d{4})-(\d{2})-(\d{2})[ T](\d{2}):(\d{2}):(\d{2})(\.\d{1,9})?(?:Z|\+00:00)?$/;

/**
 * Reads the Azure LLM inference CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`, UTC, 2023 and 2024
 * releases). Times count from the first row; the trace says nothing about prefixes, so nothing is shared.
 */
export function readAzureCsv(lines: Lines, { file, meta }: ReaderOptions): Workload {
  const builder = new WorkloadBuilder(meta);
  let firstMs: number | undefined;
  let isHeader = true;
  forEachRow(lines, file, (text, place) => {
    if (isHeader) {
      isHeader = false;
      if (detectFormat(text) !== "azure") {
        throw rowError(place, "header", "must be TIMESTAMP,ContextTokens,GeneratedTokens");
      }
      return;
    }
    const cells = text.trim().split(",");
    if (cells.length !== 3) {
      throw rowError(place, "row", `has ${String(cells.length)} columns; it must have 3`);
    }
    const [time, context, generated] = cells as [string, string, string];
    const parts = azureTime.exec(time);
    if (parts === null) {
      throw rowError(
        place,
        "TIMESTAMP",
        `is ${JSON.stringify(time)}; it must be like 2023-11-16 18:17:03.9799600`,
      );
    }
    const [, year, month, day, hour, minute, second, fraction = ".0"] = parts;
    const wholeMs = Date.UTC(
      Number(year),
      Number(month) - 1,
      Number(day),
      Number(hour),
      Number(minute),
      Number(second),
    );
    const atMs = wholeMs + Number(fraction) * 1_000;
    firstMs ??= atMs;
    const row = {
      ContextTokens: /^\d+$/.test(context) ? Number(context) : context,
      GeneratedTokens: /^\d+$/.test(generated) ? Number(generated) : generated,
    };
    builder.add(
      {
        atMs: atMs - firstMs,
        inputTokens: wholeField(row, "ContextTokens", 1, place),
        outputTokens: Math.max(1, wholeField(row, "GeneratedTokens", 0, place)),
        blockIds: [],
      },
      place,
    );
  });
  return builder.build();
}
