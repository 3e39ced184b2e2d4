/** What can serve the hot port: our own HTTP/2 with messages read in place, or grpc-js with generated messages. */
export const hotServerKinds = ["lean", "grpc-js"] as const;

/** One of `hotServerKinds`. */
export type HotServerKind = (typeof hotServerKinds)[number];
