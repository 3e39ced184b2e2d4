import { EventEmitter } from "node:events";
import { expect, test } from "vitest";

import { at, placeInput, routerCore } from "../../../test/support/router-builders.ts";
import type { ExplainRequest, ExplainResponse } from "../../shared/gen/kvmesh/router/v1/router.ts";
import { createRouterService, type RouterServiceDependencies } from "./router-server.ts";

const core = routerCore();
const service = createRouterService({
  core,
  peers: { explain: () => Promise.resolve([]) },
} as unknown as RouterServiceDependencies);

/** What the service answers to `Explain`. */
function explain(key: ExplainRequest["key"]): Promise<ExplainResponse> {
  const request: ExplainRequest = { key, whatIfWeights: {}, localOnly: false };
  const call = Object.assign(new EventEmitter(), { request });
  return new Promise((resolve, reject) => {
    service.explain(call as never, (error, response) => {
      if (error === null && response !== null && response !== undefined) resolve(response);
      else reject(new Error(String(error?.details)));
    });
  });
}

test("an unknown decision is named as it was asked for", async () => {
  await expect(explain({ $case: "decisionId", value: "r9.1.7" })).rejects.toThrow(
    "no router knows decision r9.1.7",
  );
  await expect(explain({ $case: "requestId", value: "req-404" })).rejects.toThrow(
    "no router knows request req-404",
  );
  await expect(explain({ $case: "last", value: true })).rejects.toThrow(
    "no decision has been made",
  );
});

test("a decision tells how many of its workers are not kept", async () => {
  const decision = core.place(placeInput(), at(1));
  const kept = core.decisions.byId(decision.id);
  if (kept !== undefined) kept.leftOut = 41;
  const answer = await explain({ $case: "decisionId", value: decision.id });
  expect(answer.decision?.leftOut).toBe(41);
});
