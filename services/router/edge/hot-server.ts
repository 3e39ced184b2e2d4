import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import { createGrpcServer, listen } from "../../shared/edge/grpc-server.ts";
import { GrpcHealth, servingStatus } from "../../shared/edge/h2/grpc-health.ts";
import {
  createH2GrpcServer,
  type CallRefusal,
  type ConnectionClose,
} from "../../shared/edge/h2/h2-grpc-server.ts";
import { AccessLogServiceService } from "../../shared/gen/envoy/service/accesslog/v3/als.ts";
import { ExternalProcessorService } from "../../shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import { createAccessLogService } from "./access-log-server.ts";
import type { AccessRecord } from "./access-log/access-record.ts";
import { createLeanAccessLog } from "./access-log/lean-service.ts";
import { createExtProcService } from "./ext-proc-server.ts";
import type { ExtProcDependencies } from "./ext-proc/exchange-stream.ts";
import { createLeanExtProc } from "./ext-proc/lean-service.ts";
import type { HotServerKind } from "./hot-server-kinds.ts";

/** Full name of the ext_proc service. */
export const extProcName = "envoy.service.ext_proc.v3.ExternalProcessor";
const accessLogName = "envoy.service.accesslog.v3.AccessLogService";

/** What the hot port serves: ext_proc, the access log and health. */
export interface HotServerOptions {
  readonly extProc: ExtProcDependencies;
  readonly onRecord: (record: AccessRecord) => void;
  /** Who may use ext_proc and the access log. */
  readonly allowed: readonly Cidr[];
  /** Told of every call that is let in, health checks among them. */
  readonly onCall?: () => void;
  /** A call was refused by the allow-list. */
  readonly onRefused: (service: string) => void;
  /** What the lean server refused or ended; the other one does not say. */
  readonly onCallEnded?: (reason: CallRefusal) => void;
  readonly onConnectionClosed?: (reason: ConnectionClose) => void;
}

/** A server on the hot port; nothing listens until `listen`. */
export interface HotServer {
  listen(host: string, port: number): Promise<number>;
  /** Tells health checks and watches of a service; "" is the whole process. */
  setServing(service: string, serving: boolean): void;
  /** Bytes of request bodies held now. */
  bodyMemoryBytes(): number;
  /** Connections open; −1 when the server does not say. */
  connections(): number;
  /** Opens no more calls, gives open ones so long, ends. */
  stop(deadlineMs: number): Promise<void>;
  /** Ends at once. */
  kill(): void;
}

/** Messages larger than the largest body are refused; the rest of a message is small. */
function messageBytesMax(options: HotServerOptions): number {
  return options.extProc.limits.bodyBytesMax + 1_048_576;
}

/** The hot port on grpc-js with generated messages. */
function createGrpcJsHotServer(options: HotServerOptions): HotServer {
  const hot = createGrpcServer({
    callers: [extProcName, accessLogName].map((service) => ({ service, allowed: options.allowed })),
    onRefused: options.onRefused,
    onCall: () => options.onCall?.(),
    messageBytesMax: messageBytesMax(options),
    reflection: false,
  });
  const extProc = createExtProcService(options.extProc);
  hot.add(ExternalProcessorService, extProc.service);
  hot.add(AccessLogServiceService, createAccessLogService(options.onRecord));
  return {
    listen: (host, port) => listen(hot.server, host, port),
    setServing: (service, serving) => {
      hot.health.setStatus(service, serving ? "SERVING" : "NOT_SERVING");
    },
    bodyMemoryBytes: () => extProc.bodyMemoryBytes(),
    connections: () => -1,
    stop: (deadlineMs) =>
      new Promise((resolve) => {
        const cut = setTimeout(() => {
          hot.server.forceShutdown();
          resolve();
        }, deadlineMs);
        hot.server.tryShutdown(() => {
          clearTimeout(cut);
          resolve();
        });
      }),
    kill: () => {
      hot.server.forceShutdown();
    },
  };
}

/** The hot port on the lean HTTP/2 server, with messages read and written in place. */
function createLeanHotServer(options: HotServerOptions): HotServer {
  const extProc = createLeanExtProc(options.extProc);
  const health = new GrpcHealth();
  const guarded = new Map([
    [`/${extProcName}/Process`, extProc.method],
    [`/${accessLogName}/StreamAccessLogs`, createLeanAccessLog(options.onRecord)],
  ]);
  const largest = messageBytesMax(options);
  const isListed = remembered((peer) => inCidrs(options.allowed, peer));
  const server = createH2GrpcServer({
    methods: new Map([...guarded, ...health.methods()]),
    limits: {
      messageBytesMax: largest,
      bufferedBytesMax: Math.max(options.extProc.limits.bodyMemoryBytesMax, 4 * largest),
    },
    allow: (path, peer) => {
      const isAllowed = !guarded.has(path) || isListed(peer);
      if (isAllowed) options.onCall?.();
      return isAllowed;
    },
    onRefused: (reason, path) => {
      if (reason === "not_allowed") options.onRefused(path.split("/")[1] ?? "");
      options.onCallEnded?.(reason);
    },
    onClosed: (reason) => options.onConnectionClosed?.(reason),
    // A bug stops the process, as one anywhere else does.
    onHandlerError: (error) => {
      queueMicrotask(() => {
        throw error;
      });
    },
  });
  return {
    listen: (host, port) => server.listen(host, port),
    setServing: (service, serving) => {
      health.set(service, serving ? servingStatus.serving : servingStatus.notServing);
    },
    bodyMemoryBytes: () => extProc.bodyMemoryBytes(),
    connections: () => server.counts().connections,
    stop: async (deadlineMs) => {
      health.endWatches();
      await server.drain(deadlineMs);
    },
    kill: () => {
      void server.close();
    },
  };
}

/** Addresses whose place on the allow-list is remembered. */
const peersRememberedMax = 1_024;

/** Asks once for each text; reading an address costs more than the rest of taking a call. */
function remembered(ask: (text: string) => boolean): (text: string) => boolean {
  const answers = new Map<string, boolean>();
  return (text) => {
    const known = answers.get(text);
    if (known !== undefined) return known;
    if (answers.size >= peersRememberedMax) answers.clear();
    const answer = ask(text);
    answers.set(text, answer);
    return answer;
  };
}

/** Makes the server of the hot port. */
export function createHotServer(kind: HotServerKind, options: HotServerOptions): HotServer {
  return kind === "lean" ? createLeanHotServer(options) : createGrpcJsHotServer(options);
}
