/** Seeds that once showed a bug, with the bug's name. They run in every test run beside the plain ones. */
export const seedsWithNames: readonly { readonly seed: number; readonly why: string }[] = [];

/** Plain seeds of the short run. */
export const seeds: readonly number[] = Array.from({ length: 50 }, (_, i) => i + 1);
