import { status } from "@grpc/grpc-js";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { hotServerKinds } from "../../services/router/edge/hot-server-kinds.ts";
import { workerId } from "../../services/shared/core/ids.ts";
import {
  playPeer,
  sendBody,
  sendHeaders,
  sendNothing,
  sendResponseHeaders,
  sendTrailers,
  startExtProcRouter,
  type BodyModeName,
  type ExtProcRouter,
  type PeerOutcome,
  type PeerStep,
} from "../support/router-ext-proc.ts";

const w0 = "127.0.0.1:8100";
const w1 = "127.0.0.1:8101";
const both = `${w0},${w1}`;
const completion = { model: "m", prompt: [1, 2, 3] };
const routed = (endpoints: string): string =>
  `x-kvmesh-pool=pool-default x-gateway-destination-endpoint=${endpoints} picked=${endpoints}`;

/** The default interval would make most of this file's time. */
const soon = { timeout: 5_000, interval: 5 };

describe.each(hotServerKinds)("on %s", (server) => {
  let router: ExtProcRouter;

  beforeEach(async () => {
    router = await startExtProcRouter({ server });
  });

  afterEach(async () => {
    await atRest(router);
    router.stop();
  });

  /** Whatever happened, no stream stays open and no body is held. */
  async function atRest(of: ExtProcRouter): Promise<void> {
    await vi.waitFor(async () => {
      expect(await of.metric("extProcStreams")).toBe(0);
      expect(of.bodyMemoryBytes()).toBe(0);
    }, soon);
  }

  const play = (...steps: readonly PeerStep[]): Promise<PeerOutcome> =>
    playPeer(router.client, steps);

  async function ended(how: "answered" | "cancelled" | "protocol_error"): Promise<void> {
    await vi.waitFor(async () => {
      expect(await router.metric("extProcEnds", { end: how })).toBe(1);
    }, soon);
    expect(await router.metric("extProcEnds")).toBe(1);
  }

  describe("legal orders", () => {
    test.each(["buffered", "partial"] as const)(
      "%s: headers go on, the body carries the answer",
      async (mode) => {
        const outcome = await play(
          sendHeaders(mode),
          { do: "await", answers: 1 },
          sendBody(completion),
        );
        expect(outcome.answers).toEqual(["headers continue", `body ${routed(both)}`]);
        expect(outcome.status).toBe(status.OK);
        await ended("answered");
      },
    );

    test("BUFFERED with trailers: the one body message has no end mark", async () => {
      const outcome = await play(
        sendHeaders("buffered"),
        { do: "await", answers: 1 },
        sendBody(completion, false),
        sendTrailers,
      );
      expect(outcome).toMatchObject({
        answers: ["headers continue", `body ${routed(both)}`],
        status: status.OK,
      });
    });

    test("BUFFERED_PARTIAL with more body than Envoy shows: placed by load for the model that is visible", async () => {
      const start = `{"model":"m","prompt":"${"x".repeat(5_000)}`;
      const outcome = await play(
        sendHeaders("partial"),
        { do: "await", answers: 1 },
        sendBody(start, false),
      );
      expect(outcome.answers[1]).toBe(`body ${routed(both)}`);
      expect(router.core.decisions.last?.loadOnlyReason).toBe("body_truncated");
    });

    test("FULL_DUPLEX_STREAMED: the body comes back in pieces, equal to what was sent, ended once", async () => {
      const body = Buffer.from(JSON.stringify({ model: "m", prompt: "y".repeat(200_000) }));
      const chunks = [body.subarray(0, 1), body.subarray(1, 70_000), body.subarray(70_000)];
      const outcome = await play(
        sendHeaders("duplex"),
        ...chunks.map((chunk) => sendBody(chunk, false)),
        sendBody("", true),
      );
      expect(outcome.status).toBe(status.OK);
      // One server echoes the parts as they came, the other joins them.
      const last = body.length - 186_000;
      const pieces =
        server === "lean"
          ? ["62000", "62000", "62000", `${last} end`]
          : ["1", "62000", "7999", "62000", "62000", `${last - 8_000} end`];
      expect(outcome.answers).toEqual([
        `headers ${routed(w0)}`,
        ...pieces.map((piece) => `piece ${piece}`),
      ]);
      const echoed = outcome.raw.flatMap(({ response }) => {
        const mutation =
          response?.$case === "requestBody"
            ? response.value.response?.bodyMutation?.mutation
            : undefined;
        return mutation?.$case === "streamedResponse" ? [mutation.value.body] : [];
      });
      expect(Buffer.concat(echoed).equals(body)).toBe(true);
    });

    test("FULL_DUPLEX_STREAMED with trailers: they are answered after the last piece, which has no end mark", async () => {
      const outcome = await play(sendHeaders("duplex"), sendBody(completion, false), sendTrailers);
      expect(outcome.answers).toEqual([`headers ${routed(w0)}`, "piece 30", "trailers"]);
    });

    test("FULL_DUPLEX_STREAMED with a second end of stream", async () => {
      const outcome = await play(
        sendHeaders("duplex"),
        sendBody(completion, true),
        sendBody("", true),
      );
      expect(outcome).toMatchObject({
        answers: [`headers ${routed(w0)}`, "piece 30 end"],
        status: status.OK,
      });
    });

    test("FULL_DUPLEX_STREAMED names fallbacks when the settings say that the proxy reads them", async () => {
      const listing = await startExtProcRouter({ server, duplexFallbacks: true });
      const outcome = await playPeer(listing.client, [sendHeaders("duplex"), sendBody(completion)]);
      expect(outcome.answers[0]).toBe(`headers ${routed(both)}`);
      await atRest(listing);
      listing.stop();
    });

    test.each(["none", "buffered", "partial", "duplex"] as const)(
      "a GET without body in mode %s is answered on its headers",
      async (mode) => {
        const headers = { ":method": "GET", ":path": "/health" };
        const outcome = await play(sendHeaders(mode, { endOfStream: true, headers }));
        const endpoints = mode === "duplex" ? w0 : both;
        expect(outcome).toMatchObject({
          answers: [`headers ${routed(endpoints)}`],
          status: status.OK,
        });
      },
    );

    test("the list of models is answered by the router", async () => {
      const headers = { ":method": "GET", ":path": "/v1/models?x=1" };
      const outcome = await play(sendHeaders("buffered", { endOfStream: true, headers }));
      expect(outcome.answers).toEqual(["immediate 200 kvmesh_models"]);
      const [answer] = outcome.raw;
      const body =
        answer?.response?.$case === "immediateResponse"
          ? answer.response.value.body.toString()
          : "";
      expect(JSON.parse(body)).toMatchObject({
        object: "list",
        data: [{ id: "m", object: "model", owned_by: "kvmesh", max_model_len: 100_000 }],
      });
      expect(router.core.decisions.size).toBe(0);
    });

    test("a proxy that does not name its body mode is placed by load on the headers", async () => {
      const outcome = await play(sendHeaders(undefined));
      expect(outcome.answers).toEqual([`headers ${routed(both)}`]);
    });

    test("the subset hint limits the choice, as a list or as text", async () => {
      for (const subset of [[w1], w1, ` ${w1} , 10.0.0.1:80`]) {
        const outcome = await play(
          sendHeaders("buffered", { subset }),
          { do: "await", answers: 1 },
          sendBody(completion),
        );
        expect(outcome.answers[1]).toBe(`body ${routed(w1)}`);
      }
      const nobody = await play(
        sendHeaders("buffered", { subset: ["10.0.0.1:80"] }),
        { do: "await", answers: 1 },
        sendBody(completion),
      );
      expect(nobody.answers[1]).toMatch(/^immediate 503 kvmesh_no_ready_worker retry-after=1 /);
    });

    test("headers that come as text instead of bytes are read", async () => {
      const first = sendHeaders("buffered", { headers: { ":path": "/v1/chat/completions" } });
      if (first.do !== "send" || first.message.request?.$case !== "requestHeaders")
        throw new Error("no headers");
      for (const header of first.message.request.value.headers?.headers ?? []) {
        header.value = header.rawValue.toString();
        header.rawValue = Buffer.alloc(0);
      }
      const body = { model: "m", messages: [] };
      const outcome = await play(first, { do: "await", answers: 1 }, sendBody(body));
      expect(outcome.answers[1]).toBe("immediate 400 kvmesh_invalid_request field=messages");
    });
  });

  describe("requests that are refused", () => {
    const modes: readonly BodyModeName[] = ["buffered", "partial", "duplex"];

    test.each<[string, Buffer | string | object, string]>([
      ["malformed JSON", '{"model":', "immediate 400 kvmesh_invalid_request"],
      ["bad UTF-8", Buffer.from([0x7b, 0xff, 0x7d]), "immediate 400 kvmesh_invalid_request"],
      ["an empty body", "", "immediate 400 kvmesh_invalid_request"],
      [
        "a wrong type",
        { model: 7, prompt: "x" },
        "immediate 400 kvmesh_invalid_request field=model",
      ],
      [
        "a reserved field",
        { ...completion, kv_transfer_params: {} },
        "immediate 400 kvmesh_invalid_request field=kv_transfer_params",
      ],
      [
        "an unknown model",
        { ...completion, model: "x" },
        "immediate 404 kvmesh_model_not_found field=model",
      ],
      [
        "a context too long",
        { model: "m", prompt: Array(100_000).fill(1) },
        "immediate 400 kvmesh_context_length_exceeded",
      ],
    ])(
      "%s: the client gets the same answer in every mode, and nothing is reserved",
      async (_name, body, expected) => {
        for (const mode of modes) {
          const outcome = await play(
            sendHeaders(mode),
            ...(mode === "duplex" ? [] : [{ do: "await", answers: 1 } as const]),
            sendBody(body),
          );
          expect(outcome.status).toBe(status.OK);
          expect(outcome.answers.at(-1)).toBe(expected);
        }
        expect(router.core.book.openCount).toBe(0);
        expect(await router.metric("refused")).toBe(3);
      },
    );

    test("no live worker: 503 that says when to come back", async () => {
      for (const id of ["w0", "w1"]) router.core.setReady(workerId(id), false);
      const outcome = await play(
        sendHeaders("buffered"),
        { do: "await", answers: 1 },
        sendBody(completion),
      );
      expect(outcome.answers[1]).toBe(
        "immediate 503 kvmesh_no_ready_worker retry-after=1 retry-after-ms=1000 x-kvmesh-shed-reason=no_ready_worker",
      );
    });

    test("a body beyond the limit in one message: 413", async () => {
      const outcome = await play(
        sendHeaders("buffered"),
        { do: "await", answers: 1 },
        sendBody(Buffer.alloc(64 * 1024 * 1024 + 1, 120)),
      );
      expect(outcome.answers).toEqual([
        "headers continue",
        "immediate 413 kvmesh_request_too_large",
      ]);
      expect(outcome.status).toBe(status.OK);
      await ended("answered");
    });

    test("a body of 65 MiB in pieces: 413 when the limit is passed, and the rest is not kept", async () => {
      const piece = Buffer.alloc(1024 * 1024, 120);
      const pieces = Array.from({ length: 65 }, () => sendBody(piece, false));
      const outcome = await play(sendHeaders("duplex"), ...pieces);
      expect(outcome.answers).toEqual(["immediate 413 kvmesh_request_too_large"]);
      expect(outcome.status).toBe(status.OK);
      expect(router.bodyMemoryBytes()).toBe(0);
    });

    test("bodies in flight beyond the memory for them: 503, and others are not disturbed", async () => {
      const small = await startExtProcRouter({
        server,
        bodyBytesMax: 100_000,
        bodyMemoryBytesMax: 150_000,
      });
      const half = JSON.stringify({ model: "m", prompt: "z".repeat(90_000) });
      let release: () => void = () => undefined;
      const held = small.client.process();
      const answers: number[] = [];
      const done = new Promise<number>((resolve) => {
        held.on("data", () => answers.push(1));
        held.on("error", () => undefined);
        held.on("status", (s) => {
          resolve(s.code);
        });
      });
      const [head, first, last] = [
        sendHeaders("duplex"),
        sendBody(half, false),
        sendBody("", true),
      ];
      for (const step of [head, first]) if (step.do === "send") held.write(step.message);
      release = () => {
        if (last.do === "send") held.write(last.message);
      };
      await vi.waitFor(() => {
        expect(small.bodyMemoryBytes()).toBe(half.length);
      });
      const refused = await playPeer(small.client, [sendHeaders("duplex"), sendBody(half)]);
      expect(refused.answers).toEqual([
        "immediate 503 kvmesh_overloaded retry-after=1 retry-after-ms=1000 x-kvmesh-shed-reason=body_memory",
      ]);
      expect(small.bodyMemoryBytes()).toBe(half.length);
      release();
      expect(await done).toBe(status.OK);
      expect(answers.length).toBeGreaterThan(2);
      await atRest(small);
      expect(
        (await playPeer(small.client, [sendHeaders("duplex"), sendBody(half)])).answers[0],
      ).toMatch(/^headers /);
      small.stop();
    });
  });

  describe("illegal orders", () => {
    test.each<[string, readonly PeerStep[], RegExp]>([
      ["a body first", [sendBody(completion)], /body came before its headers/],
      ["trailers first", [sendTrailers], /trailers came before the headers/],
      ["response headers", [sendResponseHeaders], /responseHeaders was sent.*SKIP/],
      ["an empty message", [sendNothing], /an empty message/],
      ["mode STREAMED", [sendHeaders("streamed")], /request_body_mode must be BUFFERED/],
      ["headers twice", [sendHeaders("duplex"), sendHeaders("duplex")], /headers came twice/],
      [
        "response headers in the middle",
        [sendHeaders("duplex"), sendBody("{", false), sendResponseHeaders],
        /responseHeaders/,
      ],
      [
        "an empty message in the middle",
        [sendHeaders("duplex"), sendBody("{", false), sendNothing],
        /an empty message/,
      ],
    ])("%s: the stream fails and says what to set right", async (_name, steps, reason) => {
      const outcome = await play(...steps);
      expect(outcome).toMatchObject({ answers: [], status: status.INVALID_ARGUMENT });
      expect(outcome.details).toMatch(reason);
      await ended("protocol_error");
      expect(router.core.decisions.size).toBe(0);
    });

    test("headers twice after the first were answered", async () => {
      const outcome = await play(
        sendHeaders("buffered"),
        { do: "await", answers: 1 },
        sendHeaders("buffered"),
      );
      expect(outcome).toMatchObject({
        answers: ["headers continue"],
        status: status.INVALID_ARGUMENT,
      });
      await ended("protocol_error");
    });

    test("anything after the answer is ignored", async () => {
      const outcome = await play(
        sendHeaders("buffered"),
        { do: "await", answers: 1 },
        sendBody(completion),
        sendBody(completion),
        sendHeaders("buffered"),
        sendNothing,
      );
      expect(outcome).toMatchObject({
        answers: ["headers continue", `body ${routed(both)}`],
        status: status.OK,
      });
      await ended("answered");
      expect(router.core.decisions.size).toBe(1);
    });
  });

  describe("a peer that leaves", () => {
    test("cancels in the middle of a body", async () => {
      const outcome = await play(
        sendHeaders("buffered"),
        { do: "await", answers: 1 },
        { do: "cancel" },
      );
      expect(outcome.status).toBe(status.CANCELLED);
      await ended("cancelled");
      const duplex = play(sendHeaders("duplex"), sendBody("x".repeat(100_000), false), {
        do: "cancel",
      });
      expect((await duplex).status).toBe(status.CANCELLED);
      await atRest(router);
      expect(router.core.decisions.size).toBe(0);
    });

    test("half-closes in the middle of a body: the stream ends without an answer", async () => {
      const outcome = await play(sendHeaders("duplex"), sendBody("{", false), { do: "half_close" });
      expect(outcome).toMatchObject({ answers: [], status: status.OK });
      await ended("cancelled");
    });

    test("half-closes right after the body: the answer still comes", async () => {
      const outcome = await play(sendHeaders("duplex"), sendBody(completion), { do: "half_close" });
      expect(outcome).toMatchObject({
        answers: [`headers ${routed(w0)}`, "piece 30 end"],
        status: status.OK,
      });
      await ended("answered");
    });

    test("says nothing at all", async () => {
      const outcome = await play({ do: "half_close" });
      expect(outcome).toMatchObject({ answers: [], status: status.OK });
      await ended("cancelled");
    });

    test("loses its connection", async () => {
      const call = router.client.process();
      call.on("error", () => undefined);
      const step = sendHeaders("duplex");
      if (step.do === "send") call.write(step.message);
      await vi.waitFor(async () => {
        expect(await router.metric("extProcStreams")).toBe(1);
      });
      router.client.close();
      call.cancel();
      await ended("cancelled");
    });
  });

  test("two hundred streams at once, a quarter of them cancelled: each is answered once or not at all", async () => {
    const outcomes = await Promise.all(
      Array.from({ length: 200 }, (_, i) =>
        i % 4 === 0
          ? play(sendHeaders("duplex"), sendBody("{", false), { do: "cancel" })
          : play(
              sendHeaders("duplex", { headers: { "x-request-id": `r${i}` } }),
              sendBody(completion),
            ),
      ),
    );
    const answered = outcomes.filter((o) => o.answers.length > 0);
    expect(answered).toHaveLength(150);
    for (const o of answered)
      expect([o.answers.length, o.answers[1], o.status]).toEqual([2, "piece 30 end", status.OK]);
    expect(router.core.book.openCount).toBe(150);
  });
});
