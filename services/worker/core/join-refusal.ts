/** Why a router will not have this worker, or this worker will not join a router; needs a person. */
export type RefusalKind =
  | "bad_proof"
  | "address_not_allowed"
  | "caller_not_allowed"
  | "incompatible"
  | "id_taken"
  | "stale_epoch"
  | "protocol_version"
  | "hash_seed"
  | "block_size";

/** A refusal in words: what is wrong and how to mend it. */
export interface JoinRefusal {
  readonly kind: RefusalKind;
  readonly message: string;
  readonly mend: string;
}

const mendings: Readonly<Record<RefusalKind, string>> = {
  bad_proof:
    "give this worker the router's mesh.keys (worker.keysFile); the join keys in the two files differ",
  address_not_allowed:
    "add the engine's network to workers.allowedCidrs of the routers, or set worker.engine.advertise to an address inside it",
  caller_not_allowed:
    "add this worker's address, which the router's message names, to router.callers.membership of the routers",
  incompatible:
    "see the router's message; worker and router must agree on block size and hash seed",
  id_taken: "give this worker another worker.workerId, or stop the process that holds this one",
  stale_epoch: "stop this worker: a newer process with the same id has joined",
  protocol_version: "run the same version of worker and router",
  hash_seed: "give worker and router the same mesh.keys; their hash seeds differ",
  block_size:
    "choose a mesh block size that is a multiple of the engine's, or start the engine with a --block-size that divides the mesh's",
};

/** A refusal of this kind. */
export function joinRefusal(kind: RefusalKind, message: string): JoinRefusal {
  return { kind, message, mend: mendings[kind] };
}

/** gRPC status codes by which a router refuses a hello (`worker.proto`, rpc Join). */
const byStatus: ReadonlyMap<number, RefusalKind> = new Map<number, RefusalKind>([
  [3, "incompatible"],
  [6, "id_taken"],
  [10, "stale_epoch"],
  [16, "bad_proof"],
]);
const permissionDenied = 7;

/** How a router, or something before it, ended a stream. */
export interface StreamEnd {
  /** gRPC status code. */
  readonly code: number;
  readonly details: string;
  /** The router's own name for the error (`kvmesh-error-code`); `undefined` when its Join handler did not speak. */
  readonly errorCode: string | undefined;
}

/**
 * The refusal that a stream's end means, or `undefined` for a fault that trying again may cure. A hello refused for the
 * engine's address carries the router's error code; a caller off the allow-list never gets as far as the handler.
 */
export function refusalOfEnd({ code, details, errorCode }: StreamEnd): JoinRefusal | undefined {
  if (code === permissionDenied) {
    const kind = errorCode === undefined ? "caller_not_allowed" : "address_not_allowed";
    return joinRefusal(kind, details);
  }
  const kind = byStatus.get(code);
  return kind === undefined ? undefined : joinRefusal(kind, details);
}
