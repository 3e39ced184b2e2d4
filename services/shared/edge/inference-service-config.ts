const service = "kvmesh.inference.v1.Inference";

/**
 * gRPC service config for callers of `kvmesh.inference.v1.Inference`; clients in any language take the same JSON.
 *
 * - Relays are used in turn; one that is gone is left out.
 * - A call that failed before its first message is tried again, three times at most and never earlier than the server says
 *   (`grpc-retry-pushback-ms`): UNAVAILABLE and RESOURCE_EXHAUSTED are never answered after it. Tries stay a tenth of the calls
 *   once more than five have failed (`retryThrottling`), so that a mesh in trouble is not hit harder.
 * - A stream that broke later is gone on with by Resume, not by a retry.
 * - There is no default deadline: each call should set the one of its request, which the relay sheds early.
 */
export const inferenceServiceConfig = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [
        { service, method: "Generate" },
        { service, method: "Resume" },
      ],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
    { name: [{ service, method: "Cancel" }], timeout: "1s" },
  ],
  retryThrottling: { maxTokens: 10, tokenRatio: 0.1 },
} as const;
