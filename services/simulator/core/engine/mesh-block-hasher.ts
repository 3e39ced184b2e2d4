import { hashNextBlock, type HashRoot } from "../../../shared/core/block-hash.ts";
import type { BlockHashChain, BlockHasher, HashScope } from "./engine-types.ts";

/**
 * Names blocks by the mesh's own sequence hash: about 1 ns per token, and the router's index of a virtual
 * fleet can be compared with a pool directly. `rootOf` gives the root of a scope, as the router would.
 */
export class MeshBlockHasher implements BlockHasher {
  readonly blockSizeTokens: number;
  readonly resumable = true;
  readonly #rootOf: (scope: HashScope) => HashRoot;

  constructor(blockSizeTokens: number, rootOf: (scope: HashScope) => HashRoot) {
    this.blockSizeTokens = blockSizeTokens;
    this.#rootOf = rootOf;
  }

  startChain(scope: HashScope): BlockHashChain {
    const root = this.#rootOf(scope);
    const blockSizeTokens = this.blockSizeTokens;
    const pair = new Uint32Array(2);
    return {
      next(tokens, offset, out, at) {
        const low = at === 0 ? root.lo : (out[at - 2] as number);
        const high = at === 0 ? root.hi : (out[at - 1] as number);
        hashNextBlock(low, high, tokens, offset, blockSizeTokens, pair);
        out[at] = pair[0] as number;
        out[at + 1] = pair[1] as number;
      },
    };
  }
}
