/** Numbers in a list of any depth. */
function countNumbers(value: unknown): number {
  if (typeof value === "number") return 1;
  if (!Array.isArray(value)) return 0;
  let count = 0;
  for (const one of value) count += countNumbers(one);
  return count;
}

/**
 * Blocks that a hand-off of vLLM offers, from its `kv_transfer_params` as JSON: `remote_block_ids` is a list of ids, or
 * of lists by group. `undefined` where it does not say.
 */
export function handoffBlocks(params: string): number | undefined {
  try {
    const { remote_block_ids: ids } = JSON.parse(params) as { readonly remote_block_ids?: unknown };
    return Array.isArray(ids) ? countNumbers(ids) : undefined;
  } catch {
    return undefined;
  }
}
