import { RelativeBlocksReader, RelativeBlocksWriter } from "./relative-blocks.ts";
import {
  numberField,
  parseRow,
  rowError,
  textField,
  wholeField,
  wholeListField,
  type RowPlace,
} from "./row-parser.ts";
import { forEachRow, type Lines } from "./readers.ts";
import { WorkloadBuilder } from "./workload-builder.ts";
import type { Workload, WorkloadDefaults } from "./workload.ts";

/** A workload with the figures it is meant to be run with. */
export interface PreparedWorkload {
  readonly workload: Workload;
  readonly defaults: WorkloadDefaults;
}

const format = "kvmesh.workload";
const version = 1;

interface Header extends PreparedWorkload {
  readonly requests: number;
}

function readHeader(text: string, place: RowPlace): Header {
  const row = parseRow(text, place);
  if (row["format"] !== format || row["version"] !== version) {
    throw rowError(place, "format", `must be "${format}" with version ${String(version)}`);
  }
  const defaults = row["defaults"];
  if (typeof defaults !== "object" || defaults === null || Array.isArray(defaults)) {
    throw rowError(place, "defaults", "must be an object");
  }
  const given = defaults as Readonly<Record<string, unknown>>;
  return {
    requests: wholeField(row, "requests", 0, place),
    workload: {
      name: textField(row, "name", place),
      description: textField(row, "description", place),
      source: textField(row, "source", place),
      licence: textField(row, "licence", place),
      blockTokens: wholeField(row, "blockTokens", 1, place),
      requests: [],
    },
    defaults: {
      rateFactor: numberField(given, "rateFactor", 1e-6, place),
      workers: wholeField(given, "workers", 1, place),
      kvTokensPerWorker: wholeField(given, "kvTokensPerWorker", 1, place),
      contextTokensMax: wholeField(given, "contextTokensMax", 1, place),
    },
  };
}

/**
 * Reads a workload file of ours: a JSON header line, then one row per request: `t` ms, `i` input
 * tokens, `o` output tokens, `s` session (may be missing), `k` and `r` as `keep` and `runs` of
 * `relative-blocks.ts`. A file cut short is refused, since the header says how many rows it has.
 */
export function readPrepared(lines: Lines, file: string): PreparedWorkload {
  let header: Header | undefined;
  let builder: WorkloadBuilder | undefined;
  let rows = 0;
  let last: RowPlace = { file, line: 1 };
  const blocks = new RelativeBlocksReader();
  forEachRow(lines, file, (text, place) => {
    last = place;
    if (header === undefined || builder === undefined) {
      header = readHeader(text, place);
      builder = new WorkloadBuilder(header.workload);
      return;
    }
    const row = parseRow(text, place);
    const session = row["s"] === undefined ? undefined : textField(row, "s", place);
    const inputTokens = wholeField(row, "i", 1, place);
    const expanded = blocks.expand(
      session,
      { keep: wholeField(row, "k", 0, place), runs: wholeListField(row, "r", place) },
      Math.ceil(inputTokens / header.workload.blockTokens),
    );
    if ("problem" in expanded) {
      throw rowError(place, expanded.field === "keep" ? "k" : "r", expanded.problem);
    }
    rows++;
    builder.add(
      {
        atMs: numberField(row, "t", 0, place),
        inputTokens,
        outputTokens: wholeField(row, "o", 1, place),
        blockIds: expanded,
        ...(session === undefined ? {} : { session }),
      },
      place,
    );
  });
  if (header === undefined || builder === undefined) {
    throw rowError(last, "header", "is missing; the file is empty");
  }
  if (rows !== header.requests) {
    throw rowError(
      last,
      "requests",
      `are ${String(rows)}, but the header says ${String(header.requests)}; the file was cut or changed`,
    );
  }
  return { workload: builder.build(), defaults: header.defaults };
}

/** Writes the lines of a workload file; block ids become numbers in order of first appearance. */
export function* preparedLines({ workload, defaults }: PreparedWorkload): Generator<string> {
  const { name, description, source, licence, blockTokens, requests } = workload;
  yield JSON.stringify({
    format,
    version,
    name,
    description,
    source,
    licence,
    blockTokens,
    requests: requests.length,
    defaults,
  });
  const writer = new RelativeBlocksWriter();
  const ordinals = new Map<number, number>();
  for (const request of requests) {
    const blockIds = Uint32Array.from(request.blockIds, (id) => {
      let ordinal = ordinals.get(id);
      if (ordinal === undefined) {
        ordinal = ordinals.size;
        ordinals.set(id, ordinal);
      }
      return ordinal;
    });
    const { keep, runs } = writer.shorten(request.session, blockIds);
    yield JSON.stringify({
      t: Math.round(request.atMs),
      i: request.inputTokens,
      o: request.outputTokens,
      ...(request.session === undefined ? {} : { s: request.session }),
      k: keep,
      r: runs,
    });
  }
}
