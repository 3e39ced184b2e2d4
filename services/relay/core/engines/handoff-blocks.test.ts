import { expect, test } from "vitest";
import { handoffBlocks } from "./handoff-blocks.ts";

test.each([
  ['{"remote_block_ids":[1,2,3]}', 3],
  ['{"remote_block_ids":[[1,2],[3]]}', 3],
  ['{"remote_block_ids":[]}', 0],
  ['{"remote_block_ids":null}', undefined],
  ["{}", undefined],
  ["{", undefined],
])("blocks of %s: %s", (params, blocks) => {
  expect(handoffBlocks(params)).toBe(blocks);
});
