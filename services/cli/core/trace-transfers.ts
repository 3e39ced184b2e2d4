import { attributes, spanNames } from "../../shared/core/trace-catalogue.ts";
import { formatCount, formatMs } from "./text-table.ts";
import { numberAt, textAt, type ViewSpan } from "./trace-tree.ts";

/** What KV moved between engines, a line for each transfer and each hop of it: from where to where, how much, how fast. */
export function transferTexts(spans: readonly ViewSpan[]): string[] {
  return spans
    .filter(({ name }) => name === spanNames.kvTransfer || name === spanNames.kvHop)
    .map((span) => `${span.name}  ${facts(span).join(", ")}`);
}

function facts(span: ViewSpan): string[] {
  const number = (name: string, show: (value: number) => string): string[] => {
    const value = numberAt(span, name);
    return value === undefined ? [] : [show(value)];
  };
  const text = (name: string): string[] => {
    const value = textAt(span, name);
    return value === undefined ? [] : [value];
  };
  const ends = [...text(attributes.kvSource), ...text(attributes.kvDestination)];
  const tiers = [...text(attributes.kvSourceTier), ...text(attributes.kvDestinationTier)];
  return [
    ...(ends.length === 0 ? [] : [ends.join(" → ")]),
    ...number(attributes.kvBytes, (bytes) => `${formatCount(bytes)} bytes`),
    ...number(attributes.kvBlocks, (blocks) => `${formatCount(blocks)} blocks`),
    formatMs(span.endMs - span.startMs),
    ...number(attributes.kvGbps, (gbps) => `${gbps.toPrecision(3)} GB/s`),
    ...number(attributes.kvWaitMs, (ms) => `waited ${formatMs(ms)}`),
    ...number(
      attributes.kvOverlapRatio,
      (share) => `${(share * 100).toFixed(0)} % hidden by prefill`,
    ),
    ...(tiers.length === 2 ? [`${tiers.join(" to ")} memory`] : []),
    ...text(attributes.kvTransport),
    ...text(attributes.kvOutcome),
  ];
}
