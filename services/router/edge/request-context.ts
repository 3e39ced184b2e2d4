import type { TraceContext } from "../../shared/edge/tracing.ts";

/** What the edge knows of a request besides its body. */
export interface RequestContext {
  readonly method: string;
  readonly path: string;
  readonly requestId: string;
  /** Parent of the route span. */
  readonly parent: TraceContext | undefined;
  /** Context in the HTTP header when it belongs to another trace. */
  readonly link: TraceContext | undefined;
  readonly subset: ReadonlySet<string> | undefined;
  /** Wall time at which the headers came, µs. */
  readonly startedUnixUs: number;
  readonly bodyMode: string;
  readonly bodyChunks: number;
}
