/** How a column's cells are set. */
export type Align = "left" | "right";

/** A column of a table. */
export interface Column {
  /** Heading; empty prints none. */
  readonly title: string;
  /** Default left. */
  readonly align?: Align;
}

/**
 * Rows as lines with columns aligned by two spaces, heading first, no trailing blanks. Missing cells are empty.
 * Widths count UTF-16 units: cells are plain ASCII text, colours are put on afterwards.
 */
export function textTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string[] {
  const widths = columns.map((column, index) =>
    rows.reduce((width, row) => Math.max(width, row[index]?.length ?? 0), column.title.length),
  );
  const line = (cells: readonly string[]): string =>
    columns
      .map((column, index) => {
        const cell = cells[index] ?? "";
        const width = widths[index] ?? 0;
        return column.align === "right" ? cell.padStart(width) : cell.padEnd(width);
      })
      .join("  ")
      .trimEnd();
  const heading = line(columns.map((column) => column.title));
  return heading === "" ? rows.map(line) : [heading, ...rows.map(line)];
}

/** Milliseconds for people: three significant digits, seconds from 10,000 ms; "–" when not finite. */
export function formatMs(ms: number): string {
  if (!Number.isFinite(ms)) return "–";
  const size = Math.abs(ms);
  if (size >= 10_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (size >= 100) return `${ms.toFixed(0)} ms`;
  if (size >= 10) return `${ms.toFixed(1)} ms`;
  // What rounds to nothing has no sign.
  return `${size < 0.005 ? "0.00" : ms.toFixed(2)} ms`;
}

/** A whole number with commas between thousands. Takes the bigints of the wire too. */
export function formatCount(value: number | bigint): string {
  return (typeof value === "bigint" ? value : Math.round(value)).toLocaleString("en-US");
}

/** A share as per cent: 0.834 → "83.4 %"; "–" when not finite. */
export function formatRatio(ratio: number): string {
  return Number.isFinite(ratio) ? `${(ratio * 100).toFixed(1)} %` : "–";
}
