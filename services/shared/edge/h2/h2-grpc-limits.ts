import { defaultH2Limits, type H2Limits } from "../../core/h2/limits.ts";

/** Every bound of a server: those of each connection and its own. */
export interface H2GrpcLimits extends H2Limits {
  /** Connections open at once; further ones are closed at once. */
  readonly connectionsMax: number;
  /** Largest message accepted. */
  readonly messageBytesMax: number;
  /** Messages being received and answers waiting to be sent, over all connections. */
  readonly bufferedBytesMax: number;
  /** Message buffers kept for reuse. */
  readonly pooledBytesMax: number;
}

/** What may be set: anything, floods one by one. */
export type H2GrpcLimitSettings = Partial<Omit<H2GrpcLimits, "floods">> & {
  readonly floods?: Partial<H2Limits["floods"]>;
};

/** Fills what is not set. */
export function fillLimits(settings: H2GrpcLimitSettings = {}): H2GrpcLimits {
  return {
    ...defaultH2Limits,
    connectionsMax: 1_024,
    messageBytesMax: 4 << 20,
    bufferedBytesMax: 256 << 20,
    pooledBytesMax: 32 << 20,
    ...settings,
    floods: { ...defaultH2Limits.floods, ...settings.floods },
  };
}
