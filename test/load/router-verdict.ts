import type { ExchangeMode } from "./ext-proc-messages.ts";
import type { CellReport, TargetName } from "./router-cells.ts";

/**
 * CPU of the empty grpc-js handler by body size (KB), relative to 4 KB, on a quiet machine behind the real Envoy. A run
 * in which they are far from this was disturbed.
 */
const emptyRatios: ReadonlyMap<number, number> = new Map([
  [64, 605 / 155],
  [220, 1_406 / 155],
  [512, 2_340 / 155],
]);
const strayMax = 0.4;

/** What the router may cost at most, as a ratio to the empty handler, by body size in KB; and what is aimed at. */
const limits: ReadonlyMap<number, { readonly must: number; readonly aim: number }> = new Map([
  [4, { must: 0.29, aim: 0.21 }],
  [64, { must: 0.41, aim: 0.26 }],
  [220, { must: 0.43, aim: 0.3 }],
  [512, { must: 0.6, aim: 0.41 }],
]);
const stockMust = 50;
const duplexMust = 1.5;

/** One ratio with its limits. */
export interface Ratio {
  readonly name: string;
  readonly value: number;
  /** `at most` or `at least`. */
  readonly bound: "at most" | "at least";
  readonly must: number;
  readonly aim: number | undefined;
}

function cellOf(
  cells: readonly CellReport[],
  target: TargetName,
  mode: ExchangeMode,
  sizeKb: number,
): CellReport | undefined {
  return cells.find((c) => c.target === target && c.mode === mode && c.sizeKb === sizeKb);
}

function cpuOf(
  cells: readonly CellReport[],
  target: TargetName,
  mode: ExchangeMode,
  sizeKb: number,
): number | undefined {
  return cellOf(cells, target, mode, sizeKb)?.cpuUsPerRequest;
}

/** Why the figures of a run mean nothing; empty when they do mean something. */
export function disturbances(cells: readonly CellReport[]): string[] {
  const small = cpuOf(cells, "empty", "buffered", 4);
  const found: string[] = [];
  for (const [sizeKb, expected] of emptyRatios) {
    const cpu = cpuOf(cells, "empty", "buffered", sizeKb);
    if (small === undefined || cpu === undefined) continue;
    const ratio = cpu / small;
    if (ratio > expected * (1 + strayMax) || ratio < expected * (1 - strayMax)) {
      found.push(
        `the empty handler costs ${ratio.toFixed(1)}x as much at ${String(sizeKb)} KB as at 4 KB; ` +
          `${expected.toFixed(1)}x is usual`,
      );
    }
  }
  return found;
}

/** The ratios that have limits, as far as the run measured them. */
export function ratios(
  cells: readonly CellReport[],
  members: { large: number; few: number },
): Ratio[] {
  const found: Ratio[] = [];
  for (const [sizeKb, { must, aim }] of limits) {
    const ours = cpuOf(cells, "router", "buffered", sizeKb);
    const empty = cpuOf(cells, "empty", "buffered", sizeKb);
    const duplex = cpuOf(cells, "router", "duplex", sizeKb);
    const size = `${String(sizeKb)} KB`;
    if (ours === undefined) continue;
    if (empty !== undefined) {
      const name = `${size} against an empty grpc-js handler that parses the JSON`;
      found.push({ name, value: ours / empty, bound: "at most", must, aim });
    }
    if (duplex !== undefined) {
      const name = `${size} FULL_DUPLEX_STREAMED against BUFFERED`;
      found.push({
        name,
        value: duplex / ours,
        bound: "at most",
        must: duplexMust,
        aim: undefined,
      });
    }
    const stock = cpuOf(cells, "stock", "buffered", sizeKb);
    if (stock !== undefined) {
      const name = `${size}: the stock pipeline against ours`;
      found.push({ name, value: stock / ours, bound: "at least", must: stockMust, aim: undefined });
    }
    // Reports come whether somebody asks or not; what a request adds is the rest.
    const large = cellOf(cells, "large", "buffered", sizeKb)?.netCpuUsPerRequest;
    const few = cellOf(cells, "router", "buffered", sizeKb)?.netCpuUsPerRequest;
    if (large !== undefined && few !== undefined) {
      const name = `µs for each engine and request, ${String(members.large)} engines against ${String(members.few)}`;
      const value = (large - few) / (members.large - members.few);
      found.push({ name, value, bound: "at most", must: 0.05, aim: undefined });
    }
  }
  return found;
}
