import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { isWorkerId } from "../../shared/core/ids.ts";
import type { MemberNotice } from "../core/membership/member.ts";

/** Served names of one member at most, and characters of one. */
const modelsMax = 64;
const modelCharsMax = 256;

/**
 * What is wrong with a peer's notice of a member, or `undefined`. The same is asked of it as of a worker's own hello:
 * the endpoint goes to Envoy, which dials it with the requests of users.
 */
export function noticeProblem(notice: MemberNotice, allowed: readonly Cidr[]): string | undefined {
  if (!isWorkerId(notice.workerId)) return "worker_id must be 1 to 128 of A-Z a-z 0-9 . _ : -";
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(notice.pool)) {
    return "pool must be 1 to 64 of A-Z a-z 0-9 . _ -";
  }
  const { models, epoch } = notice;
  if (models.length === 0 || models.length > modelsMax) {
    return `a member serves 1 to ${modelsMax} models`;
  }
  if (models.some((name) => name.length === 0 || name.length > modelCharsMax)) {
    return `a model's name has 1 to ${modelCharsMax} characters`;
  }
  if (!Number.isSafeInteger(epoch.workerStartMs) || !Number.isSafeInteger(epoch.engineLife)) {
    return "epoch is out of range";
  }
  const endpoint = parseEndpoint(notice.endpoint);
  if (endpoint === undefined) return "endpoint is not ip:port";
  if (!inCidrs(allowed, endpoint.host)) {
    return "endpoint lies outside workers.allowedCidrs; give all routers the same ranges";
  }
  return undefined;
}
