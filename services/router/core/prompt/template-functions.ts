import { Callable, giveUp, Namespace, type Value } from "./template-values.ts";

/** Most items that `range` makes. */
const rangeLengthMax = 100_000;

/** `namespace(…)` of a template. */
export const namespaceMaker = new Callable((args, named) => {
  if (args.length > 0) return giveUp();
  const namespace = new Namespace();
  for (const [name, value] of named) namespace.values.set(name, value);
  return namespace;
});

/** The functions that a template may call, apart from those that make it fail. */
export const templateFunctions: ReadonlyMap<string, Value> = new Map<string, Value>([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
  ["none", null],
  ["None", null],
  [
    "range",
    new Callable((args, named) => {
      if (named.size > 0 || args.length === 0 || args.length > 3) return giveUp();
      const bounds = args.map((bound) => (Number.isInteger(bound) ? (bound as number) : giveUp()));
      const [start, stop, step] =
        bounds.length === 1
          ? [0, bounds[0] ?? 0, 1]
          : [bounds[0] ?? 0, bounds[1] ?? 0, bounds[2] ?? 1];
      const length = step === 0 ? 0 : Math.max(0, Math.ceil((stop - start) / step));
      if (length > rangeLengthMax) return giveUp();
      return Array.from({ length }, (_, i) => start + i * step);
    }),
  ],
  ["raise_exception", new Callable(giveUp)],
  // Whoever gives the time makes every prompt new at each tick: left to the library.
  ["strftime_now", new Callable(giveUp)],
]);
