import { describe, expect, test } from "vitest";
import { candidate, decision, observation } from "../../../test/support/decisions.ts";
import { Outcome, type ExplainResponse } from "../../shared/gen/kvmesh/router/v1/router.ts";
import { explainJson, explainView } from "./explain-view.ts";

function response(over: Partial<ExplainResponse> = {}): ExplainResponse {
  return { decision: decision(), whatIfWorkerId: "", whatIfCandidates: [], ...over };
}

/** Cells of the line that begins with these cells. */
function cells(lines: readonly string[], ...first: readonly string[]): string[] {
  const line = lines
    .map((one) => one.trim().split(/ {2,}/))
    .find((all) => first.every((cell, i) => all[i] === cell));
  if (line === undefined) throw new Error(`no line ${first.join(" ")} in:\n${lines.join("\n")}`);
  return line;
}

describe("explainView", () => {
  test("prints every candidate with every cost term, the chosen one marked", () => {
    const lines = explainView(response());
    expect(cells(lines, "candidate", "cost")).toEqual([
      "candidate",
      "cost",
      "queue",
      "prefill",
      "decode",
      "predicted TTFT",
    ]);
    expect(cells(lines, "→", "w1", "111 ms")).toEqual([
      "→",
      "w1",
      "111 ms",
      "5.00 ms",
      "6.10 ms",
      "100 ms",
      "11.1 ms",
    ]);
    expect(cells(lines, "w0", "140 ms")).toEqual([
      "w0",
      "140 ms",
      "2.00 ms",
      "38.4 ms",
      "100 ms",
      "41.2 ms",
    ]);
    expect(cells(lines, "→", "w1", "127.0.0.1:8101")).toEqual([
      "→",
      "w1",
      "127.0.0.1:8101",
      "30",
      "480",
      "3",
      "1,024",
      "2+1",
      "120 ms",
    ]);
  });

  test("shows ranks and counts of other policies as what they are, not as times", () => {
    const terms = (ms: number) => [{ name: "turn", ms }];
    const lines = explainView(
      response({
        decision: decision({
          policy: "round-robin",
          marginMs: 1,
          candidates: [
            candidate({ workerId: "w1", costMs: 0, terms: terms(0) }),
            candidate({ workerId: "w0", costMs: 1, terms: terms(1) }),
            candidate({ workerId: "w3", costMs: 0.25, terms: [{ name: "score", ms: 0.25 }] }),
          ],
        }),
      }),
    );
    expect(cells(lines, "w0", "1")[2]).toBe("1");
    expect(cells(lines, "w3", "0.250")[3]).toBe("0.250");
    expect(lines).toContain("margin  1 to the second candidate");
  });

  test("prints why others were filtered out, the margin, and predicted beside observed", () => {
    const lines = explainView(response());
    expect(cells(lines, "w2")).toEqual(["w2", "127.0.0.1:8102", "draining"]);
    expect(lines).toContain("margin  29.3 ms to the second candidate");
    expect(cells(lines, "TTFT")).toEqual(["TTFT", "11.1 ms", "43.9 ms"]);
    expect(cells(lines, "cached tokens")).toEqual(["cached tokens", "480", "480"]);
    expect(lines).toContain(
      "ended  status 200 after 812 ms, 1 attempt, 20,480 bytes; closed by access_log",
    );
  });

  test("names a difference in cached tokens and an endpoint that was not the picked one", () => {
    const observed = observation({
      cachedTokens: 64,
      cachedDifference: "evicted",
      servedEndpoint: "127.0.0.1:8100",
      servedAsPicked: false,
      attempts: 2,
      responseFlags: "UF",
    });
    const lines = explainView(response({ decision: decision({ observed }) }));
    expect(cells(lines, "cached tokens")).toEqual(["cached tokens", "480", "64", "(evicted)"]);
    expect(cells(lines, "served by")).toEqual([
      "served by",
      "127.0.0.1:8101",
      "127.0.0.1:8100",
      "not as picked",
    ]);
    expect(lines.at(-1)).toContain("2 attempts");
    expect(lines.at(-1)).toContain("flags UF");
  });

  test("says that a request still runs, that its first byte never came, that cached tokens are unknown", () => {
    expect(explainView(response({ decision: decision({ observed: undefined }) })).at(-1)).toContain(
      "still runs",
    );
    const observed = observation({ ttftMs: 0, cachedTokens: -1, cachedDifference: "unknown" });
    const lines = explainView(response({ decision: decision({ observed }) }));
    expect(cells(lines, "TTFT")).toEqual(["TTFT", "11.1 ms", "never came"]);
    expect(cells(lines, "cached tokens").slice(0, 3)).toEqual(["cached tokens", "480", "unknown"]);
  });

  test("calls the first byte of an answer that was not streamed no first token", () => {
    const observed = observation({ ttftMs: 0 });
    const whole = explainView(response({ decision: decision({ observed, answer: "whole" }) }));
    expect(cells(whole, "TTFT").slice(0, 3)).toEqual(["TTFT", "11.1 ms", "–"]);
    expect(cells(whole, "TTFT").at(-1)).toContain("not streamed");
    const unread = explainView(response({ decision: decision({ observed, answer: "" }) }));
    expect(cells(unread, "TTFT").at(-1)).toContain("was not read");
  });

  test("says why cached tokens are not known, or that there was nothing to reuse", () => {
    const notes = (over: Parameters<typeof decision>[0]) =>
      cells(explainView(response({ decision: decision(over) })), "cached tokens").slice(2);
    const unknown = observation({ cachedTokens: -1, cachedDifference: "unknown" });
    expect(notes({ observed: unknown, loadOnlyReason: "multimodal" })).toEqual([
      "unknown",
      "(its prompt was not read as tokens)",
    ]);
    expect(notes({ observed: { ...unknown, servedAsPicked: false } })[1]).toContain("as picked");
    expect(notes({ observed: { ...unknown, closedBy: "expired" } })[1]).toContain("not heard");
    expect(notes({ promptBlocks: 0, observed: observation({ cachedTokens: 0 }) })).toEqual([
      "0",
      "(no full block to reuse)",
    ]);
  });

  test.each(["DC", "DR", "UF,DC"])("says that the client went away: flags %s", (responseFlags) => {
    const observed = observation({ responseFlags });
    const last = explainView(response({ decision: decision({ observed }) })).at(-1);
    expect(last).toMatch(/^ended {2}by the client, which went away/u);
    expect(last).toContain("status 200");
  });

  test("says how many candidates of an older decision are not kept", () => {
    const notKept = (leftOut: number) =>
      explainView(response({ decision: decision({ leftOut }) })).filter((l) =>
        l.includes("not kept"),
      );
    expect(notKept(0)).toEqual([]);
    expect(notKept(1)).toEqual(["and 1 more candidate not kept"]);
    expect(notKept(1_234)).toEqual(["and 1,234 more candidates not kept"]);
  });

  test("explains a refusal without candidates", () => {
    const refused = decision({
      outcome: Outcome.OUTCOME_NO_WORKER,
      errorCode: "no_ready_worker",
      errorMessage: "pool default has no ready worker",
      workerId: "",
      endpoints: [],
      candidates: [],
      observed: undefined,
    });
    const lines = explainView(response({ decision: refused }));
    expect(cells(lines, "outcome")).toEqual([
      "outcome",
      "no worker: no_ready_worker, pool default has no ready worker",
    ]);
    expect(lines).toContain("candidates  none");
    expect(lines.at(-1)).toBe("observed  nothing: the request went to no worker");
  });

  test("shows terms that only some candidates have, and a suspect block view", () => {
    const candidates = [
      candidate({ workerId: "w1", terms: [{ name: "queue", ms: 1 }], suspect: true }),
      candidate({ terms: [{ name: "eviction", ms: 2 }] }),
    ];
    const lines = explainView(response({ decision: decision({ candidates }) }));
    expect(cells(lines, "→", "w1", "1.00 ms")).toEqual([
      "→",
      "w1",
      "1.00 ms",
      "1.00 ms",
      "–",
      "41.2 ms",
      "suspect: its block view is being resynchronised",
    ]);
  });

  test("shows who would have won with other weights", () => {
    const lines = explainView(
      response({
        whatIfWorkerId: "w0",
        whatIfCandidates: [candidate(), candidate({ workerId: "w1" })],
      }),
    );
    expect(lines).toContain("what if: w0 instead of w1");
    expect(lines.filter((line) => line.startsWith("→"))).toHaveLength(4);
  });
});

test("the JSON form survives a round trip and holds 64-bit numbers as text", () => {
  const json: unknown = JSON.parse(JSON.stringify(explainJson(response())));
  expect(json).toMatchObject({
    schema: 1,
    decision: {
      outcome: "placed",
      decidedUnixUs: "1790000000123456",
      candidates: [{ workerId: "w1" }, { workerId: "w0" }],
      observed: { responseBytes: "20480" },
    },
    whatIf: null,
  });
});
