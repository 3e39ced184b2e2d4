/** Everything on which two engines must agree for the bytes of a block to mean the same. */
export interface KvLayout {
  readonly flavour: string;
  readonly engineVersion: string;
  readonly model: string;
  readonly blockSizeTokens: number;
  /** Bytes that are moved per block: the model's, divided by the stated factor. */
  readonly bytesPerBlock: number;
}

/** What both sides compare in the first message: every part by name, so that a refusal can say which differs. */
export function layoutFingerprint(layout: KvLayout): string {
  const { flavour, engineVersion, model, blockSizeTokens, bytesPerBlock } = layout;
  return JSON.stringify({ flavour, engineVersion, model, blockSizeTokens, bytesPerBlock });
}
