import type { ServerDuplexStream } from "@grpc/grpc-js";
import type {
  JoinRequest,
  JoinResponse,
  MembershipServer,
} from "../../shared/gen/kvmesh/worker/v1/worker.ts";
import type { EngineCounters } from "../core/load/counter-delta.ts";
import { JoinStream, type JoinStreamDependencies } from "./join-stream.ts";
import { LeaseStreams } from "./lease-streams.ts";

/** Streams at once: twice the workers that a router may be set to hold, so that all of them can come anew. */
const streamsMax = 8_192;

/** What the membership service needs. */
export interface MembershipDependencies extends Omit<JoinStreamDependencies, "replace"> {
  /** Carries out what the core wants done after a change. */
  readonly settle: () => void;
}

/** Counters by member, for people. */
export type CountersOf = (key: string) => EngineCounters | undefined;

/** The membership service with what `main` needs of it. */
export interface MembershipService {
  readonly service: MembershipServer;
  readonly countersOf: CountersOf;
  /** Announces the end to every worker. */
  drain(deadlineMs: number): void;
  /** Ends every stream. */
  close(): void;
}

/** Serves `Membership/Join`. */
export function createMembershipService(dependencies: MembershipDependencies): MembershipService {
  const { log, metrics, settle } = dependencies;
  const streams = new LeaseStreams<JoinRequest, JoinResponse, JoinStream>(
    {
      streamsMax,
      ofWhom: "workers",
      settle,
      onRefused: ({ code, message }, stream) => {
        metrics.joinRefused.inc({ code });
        const workerId = stream?.member?.workerId;
        const event = { event: "join_refused", workerId, code, reason: message };
        log.warn(event, "join stream refused");
      },
    },
    (lease) =>
      new JoinStream(lease, {
        ...dependencies,
        replace: (id) => {
          streams.replace(id, "worker");
        },
      }),
  );
  return {
    service: {
      join: (call: ServerDuplexStream<JoinRequest, JoinResponse>) => {
        streams.accept(call);
      },
    },
    countersOf: (key) => {
      for (const stream of streams.holders())
        if (stream.member?.key === key) return stream.counters;
      return undefined;
    },
    drain: (deadlineMs) => {
      for (const stream of streams.holders()) stream.drain(deadlineMs);
    },
    close: () => {
      streams.close();
    },
  };
}
