import {
  Server,
  ServerCredentials,
  ServerInterceptingCall,
  status,
  Metadata,
  type ServerInterceptor,
  type ServiceDefinition,
  type UntypedServiceImplementation,
  type handleUnaryCall,
  type ServiceError,
} from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { inCidrs, type Cidr } from "../core/cidr.ts";
import { MeshError } from "../core/errors.ts";
import { invariant } from "../core/invariant.ts";
import { toMeshError, wire } from "./wire.ts";
import { createReflection } from "./grpc-reflection.ts";
import { statusDetails } from "./status-details.ts";

/** Window sizes that let a 512 KB body cross without waiting for updates. */
const windowBytes = 4 * 1024 * 1024;

/** Who may call which service. */
export interface CallerRule {
  /** Full service name, such as `kvmesh.router.v1.Router`. */
  readonly service: string;
  /** Addresses that may call it. Identity is the peer address until certificates carry it. */
  readonly allowed: readonly Cidr[];
}

/** A gRPC server with the parts that every process has. */
export interface GrpcServer {
  readonly server: Server;
  /** Status by service name; "" is the whole process. */
  readonly health: HealthImplementation;
  /** Adds a service under a `CallerRule`; one without a rule is refused at start-up. */
  add(definition: ServiceDefinition, implementation: UntypedServiceImplementation): void;
}

/** The address part of what grpc-js calls a peer: `127.0.0.1:5000` or `[::1]:5000`. */
export function peerAddress(peer: string): string {
  const text = peer.replace(/^ipv[46]:/, "");
  const colon = text.lastIndexOf(":");
  return (colon < 0 ? text : text.slice(0, colon)).replace(/^\[|\]$/g, "");
}

function allowListInterceptor(
  rules: ReadonlyMap<string, readonly Cidr[]>,
  onRefused: (service: string, peer: string) => void,
  onCall: (service: string) => void,
): ServerInterceptor {
  return (method, call) => {
    const service = method.path.split("/")[1] ?? "";
    const allowed = rules.get(service);
    const peer = call.getPeer();
    if (allowed === undefined || inCidrs(allowed, peerAddress(peer))) {
      onCall(service);
      return new ServerInterceptingCall(call);
    }
    onRefused(service, peer);
    return new ServerInterceptingCall(call, {
      start: (next) => {
        next();
        call.sendStatus({
          code: status.PERMISSION_DENIED,
          details: `caller ${peer} is not on the allow-list of ${service}`,
        });
      },
    });
  };
}

/**
 * Envoy resets every stream that it is done with. Node takes more than a thousand resets, and then 33 a second, for an
 * attack and drops the connection with all streams on it; grpc-js passes no option on for that. A caller that does
 * attack is held off by the allow-list and the limits on streams and messages.
 */
export function tolerateResets(server: Server): void {
  const { commonServerOptions } = server as unknown as {
    readonly commonServerOptions?: Record<string, unknown>;
  };
  invariant(commonServerOptions !== undefined, "grpc-js keeps its HTTP/2 options elsewhere now");
  commonServerOptions["streamResetBurst"] = 1_000_000;
  commonServerOptions["streamResetRate"] = 1_000_000;
}

/** Makes a server with health, reflection, limits and the caller allow-list; nothing listens yet. */
export function createGrpcServer(options: {
  readonly callers: readonly CallerRule[];
  readonly onRefused?: (service: string, peer: string) => void;
  /** Told of every call that is let in, health checks among them. */
  readonly onCall?: (service: string) => void;
  /** Largest message accepted, bytes. */
  readonly messageBytesMax: number;
  /** Whether reflection is served. */
  readonly reflection?: boolean;
}): GrpcServer {
  const rules = new Map(options.callers.map((rule) => [rule.service, rule.allowed]));
  const server = new Server({
    "grpc.max_receive_message_length": options.messageBytesMax,
    "grpc.max_send_message_length": options.messageBytesMax,
    "grpc-node.flow_control_window": windowBytes,
    "grpc.max_concurrent_streams": 100_000,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    interceptors: [
      allowListInterceptor(
        rules,
        options.onRefused ?? (() => undefined),
        options.onCall ?? (() => undefined),
      ),
    ],
  });
  tolerateResets(server);
  const health = new HealthImplementation({ "": "NOT_SERVING" });
  health.addToServer(server);
  if (options.reflection ?? true) createReflection().addToServer(server);
  return {
    server,
    health,
    add(definition, implementation) {
      const path = Object.values(definition)[0]?.path ?? "";
      const service = path.split("/")[1] ?? "";
      if (!rules.has(service)) {
        throw new MeshError("invariant_violated", `service ${service} has no caller rule`);
      }
      server.addService(definition, implementation);
    },
  };
}

/** Binds without TLS on the given address and returns the port chosen. */
export function listen(server: Server, host: string, port: number): Promise<number> {
  const address = host.includes(":")
    ? `[${host}]:${port.toString()}`
    : `${host}:${port.toString()}`;
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) resolve(bound);
      else reject(error);
    });
  });
}

/** The error as gRPC sees it: status, text, `kvmesh-error-code`, the retry hint under both its names, and why it was shed. */
export function toServiceError(error: unknown): Partial<ServiceError> & { code: status } {
  const mesh = toMeshError(error);
  const metadata = new Metadata();
  metadata.set("kvmesh-error-code", mesh.code);
  if (mesh.retryAfterMs !== undefined) {
    const ms = Math.ceil(mesh.retryAfterMs).toString();
    metadata.set("grpc-retry-pushback-ms", ms);
    metadata.set("retry-after-ms", ms);
  }
  if (mesh.shedReason !== undefined) metadata.set("x-kvmesh-shed-reason", mesh.shedReason);
  const code = wire[mesh.code].grpc;
  metadata.set("grpc-status-details-bin", statusDetails(mesh, code));
  return { code, details: mesh.message, metadata };
}

/** Turns a handler, async or not, into a grpc-js one: cancellation in, mapped errors out. */
export function unary<Req, Res>(
  handle: (request: Req, signal: AbortSignal, metadata: Metadata) => Res | Promise<Res>,
): handleUnaryCall<Req, Res> {
  return (call, callback) => {
    const abort = new AbortController();
    call.on("cancelled", () => {
      abort.abort(new MeshError("cancelled", "caller left"));
    });
    new Promise<Res>((resolve) => {
      resolve(handle(call.request, abort.signal, call.metadata));
    }).then(
      (response) => {
        callback(null, response);
      },
      (error: unknown) => {
        callback(toServiceError(error));
      },
    );
  };
}
