import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { isWorkerId } from "../../shared/core/ids.ts";
import type { MemberNotice } from "../core/membership/member.ts";
import type { PeerReservation } from "../core/peers/peer-reservations.ts";
import type { RelayNotice } from "../core/relays/relay-roster.ts";
import { relayAddressProblem, relayFactsProblem } from "./relay-facts.ts";

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

/** What is wrong with a peer's notice of a relay, or `undefined`: the same as is asked of a relay's own hello. */
export function relayNoticeProblem(
  notice: RelayNotice,
  allowed: readonly Cidr[],
): string | undefined {
  const problem = relayFactsProblem(notice);
  if (problem !== undefined) return `${problem.field}: ${problem.text}`;
  const address =
    relayAddressProblem(notice.h2Address, allowed) ??
    relayAddressProblem(notice.httpAddress, allowed);
  return address?.text;
}

/** Longest id of a decision, characters. */
const decisionIdCharsMax = 512;
/** Longest prompt or answer that is believed, tokens. */
const tokensMax = 2 ** 27;
/** A reservation has a hard end long before it is so old, ms. */
const ageMsMax = 86_400_000;
/** Most KV that one prompt may be said to move, bytes. */
const transferBytesMax = 2 ** 44;

/** What is wrong with a peer's reservation, or `undefined`: it is booked on a worker as it stands. */
export function reservationProblem(reservation: PeerReservation): string | undefined {
  const { decisionId, workerId, promptTokens, uncachedTokens, expectedOutputTokens } = reservation;
  if (decisionId === "" || decisionId.length > decisionIdCharsMax) {
    return `decision_id has 1 to ${decisionIdCharsMax} characters`;
  }
  if (!isWorkerKey(workerId)) return "worker_id is no worker's";
  if (!isWithin(promptTokens, tokensMax) || !isWithin(expectedOutputTokens, tokensMax)) {
    return `token counts are 0 to ${tokensMax}`;
  }
  if (!isWithin(uncachedTokens, promptTokens)) return "uncached_tokens exceed the prompt";
  if (!isWithin(reservation.ageMs, ageMsMax)) return `age_ms is 0 to ${ageMsMax}`;
  const { awaits } = reservation;
  if (awaits === undefined) return undefined;
  if (!isWorkerKey(awaits.prefillWorker)) return "prefill_worker_id is no worker's";
  if (!isWithin(awaits.transferBytes, transferBytesMax)) {
    return `transfer_bytes are 0 to ${transferBytesMax}`;
  }
  return isWithin(awaits.beginsInMs, ageMsMax) ? undefined : `begins_in_ms is 0 to ${ageMsMax}`;
}

/** A worker's id, with the rank of its engine behind it where that is not the first. */
function isWorkerKey(key: string): boolean {
  return isWorkerId(key.split("/", 1)[0] ?? "");
}

function isWithin(value: number, max: number): boolean {
  return value >= 0 && value <= max;
}
