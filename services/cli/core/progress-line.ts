/** How far one of several runs is. */
export interface RunProgress {
  /** What runs, such as a policy. */
  readonly name: string;
  /** 0-based position among all runs, and how many there are. */
  readonly index: number;
  readonly count: number;
  readonly phase: string;
  readonly elapsedMs: number;
  readonly durationMs: number;
  readonly sent: number;
  readonly due: number;
  readonly open: number;
  readonly errors: number;
}

/** The progress of a run as one line of at most `width` characters. */
export function progressLine(progress: RunProgress, width: number): string {
  const { name, index, count, phase, elapsedMs, durationMs } = progress;
  const share = durationMs > 0 ? Math.min(1, elapsedMs / durationMs) : 0;
  const filled = Math.round(share * 20);
  const bar = "█".repeat(filled) + "░".repeat(20 - filled);
  const seconds = `${(elapsedMs / 1_000).toFixed(0)}/${(durationMs / 1_000).toFixed(0)} s`;
  const counts = `sent ${progress.sent} of ${progress.due}, open ${progress.open}, errors ${progress.errors}`;
  const line = `[${index + 1}/${count}] ${name.padEnd(14)} ${bar} ${seconds} ${phase}, ${counts}`;
  return line.slice(0, Math.max(0, width));
}

/** The list begun at another place, so that no policy always runs first: [a, b, c] by 1 is [b, c, a]. */
export function rotated<T>(list: readonly T[], by: number): T[] {
  if (list.length === 0) return [];
  const from = ((by % list.length) + list.length) % list.length;
  return [...list.slice(from), ...list.slice(0, from)];
}
