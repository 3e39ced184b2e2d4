import { expect, test } from "vitest";
import { workerId } from "../../shared/core/ids.ts";
import type { PeerReservation } from "../core/peers/peer-reservations.ts";
import { reservationProblem } from "./peer-notice-check.ts";

const good: PeerReservation = {
  decisionId: "router-1.5.9",
  workerId: workerId("w0/1"),
  promptTokens: 4_000,
  uncachedTokens: 1_000,
  expectedOutputTokens: 200,
  ageMs: 12,
};
const awaits = { prefillWorker: workerId("w1"), transferBytes: 1e9, beginsInMs: 40 };

test("a reservation as routers make them may be booked", () => {
  expect(reservationProblem(good)).toBeUndefined();
  expect(reservationProblem({ ...good, awaits })).toBeUndefined();
});

test.each<[string, PeerReservation]>([
  ["decision_id", { ...good, decisionId: "" }],
  ["decision_id", { ...good, decisionId: "x".repeat(513) }],
  ["worker_id", { ...good, workerId: workerId("a b") }],
  ["token counts", { ...good, promptTokens: Infinity }],
  ["token counts", { ...good, expectedOutputTokens: -1 }],
  ["uncached_tokens", { ...good, uncachedTokens: 4_001 }],
  ["age_ms", { ...good, ageMs: Number.NaN }],
  ["prefill_worker_id", { ...good, awaits: { ...awaits, prefillWorker: workerId("") } }],
  ["transfer_bytes", { ...good, awaits: { ...awaits, transferBytes: 1e18 } }],
  ["begins_in_ms", { ...good, awaits: { ...awaits, beginsInMs: Number.NaN } }],
])("one with a bad %s may not", (name, reservation) => {
  expect(reservationProblem(reservation)).toContain(name);
});
