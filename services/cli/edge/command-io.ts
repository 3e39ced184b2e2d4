/** Where a command writes, so that it can run in a test and so that `--json` leaves stdout to one value. */
export interface CommandIo {
  /** A line on stdout. */
  readonly out: (line: string) => void;
  /** A line on stderr. */
  readonly err: (line: string) => void;
}

/** The process's own streams. */
export const processIo: CommandIo = {
  out: (line) => void process.stdout.write(`${line}\n`),
  err: (line) => void process.stderr.write(`${line}\n`),
};

/** Exit codes of `kvmesh`: done, failed, wrong usage or settings. */
export const exitCodes = { done: 0, failed: 1, usage: 2 } as const;
