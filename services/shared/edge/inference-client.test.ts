import {
  Metadata,
  Server,
  ServerCredentials,
  status,
  type ServerWritableStream,
} from "@grpc/grpc-js";
import { afterEach, describe, expect, test } from "vitest";
import { ErrorInfo, QuotaFailure, RetryInfo } from "../gen/google/rpc/error_details.ts";
import { Status } from "../gen/google/rpc/status.ts";
import {
  FinishReason,
  InferenceService,
  type GenerateRequest,
  type GenerateResponse,
  type ResumeRequest,
  type ResumeResponse,
} from "../gen/kvmesh/inference/v1/inference.ts";
import { InferenceCaller } from "./inference-client.ts";
import { InferenceError } from "./inference-error.ts";

type GenerateCall = ServerWritableStream<GenerateRequest, GenerateResponse>;
type ResumeCall = ServerWritableStream<ResumeRequest, ResumeResponse>;

/** What a scripted relay does with calls, and what it has seen. */
interface Script {
  generate?: (call: GenerateCall, nth: number) => void;
  resume?: (call: ResumeCall, nth: number) => void;
}

interface ScriptedRelay {
  readonly address: string;
  readonly generates: GenerateRequest[];
  readonly resumes: ResumeRequest[];
  readonly cancels: string[];
  stop(): void;
}

const open: { close(): void }[] = [];
afterEach(() => {
  for (const one of open.splice(0)) one.close();
});

async function startRelay(script: Script): Promise<ScriptedRelay> {
  const server = new Server();
  const generates: GenerateRequest[] = [];
  const resumes: ResumeRequest[] = [];
  const cancels: string[] = [];
  server.addService(InferenceService, {
    generate: (call: GenerateCall) => {
      generates.push(call.request);
      script.generate?.(call, generates.length);
    },
    resume: (call: ResumeCall) => {
      resumes.push(call.request);
      script.resume?.(call, resumes.length);
    },
    cancel: (
      call: { readonly request: { readonly requestId: string } },
      answer: (error: null, response: { wasOpen: boolean }) => void,
    ) => {
      cancels.push(call.request.requestId);
      answer(null, { wasOpen: true });
    },
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) resolve(bound);
      else reject(error);
    });
  });
  const stop = (): void => {
    server.forceShutdown();
  };
  open.push({ close: stop });
  return { address: `127.0.0.1:${String(port)}`, generates, resumes, cancels, stop };
}

function callerOf(...relays: readonly ScriptedRelay[]): InferenceCaller {
  const caller = new InferenceCaller(relays.map(({ address }) => address));
  open.push(caller);
  return caller;
}

const request: GenerateRequest = {
  requestId: "r1",
  model: "m",
  input: { $case: "text", value: "hello" },
  sampling: undefined,
  tenant: "acme",
  session: "",
  priority: "",
};

const tokens = (index: number, text: string, resumeToken = ""): GenerateResponse => ({
  message: {
    $case: "tokens",
    value: { index, ids: [index], count: 1, text, resumeToken },
  },
});
const finished: GenerateResponse = {
  message: {
    $case: "finished",
    value: {
      reason: FinishReason.FINISH_REASON_STOP,
      usage: { promptTokens: 1, cachedTokens: 0, completionTokens: 4 },
    },
  },
};

/** A failure with its details, as a relay sends it. */
function failure(
  code: status,
  facts: { reason: string; retryAfterMs?: number; quota?: string; resumeToken?: string },
): object {
  const { reason, retryAfterMs, quota, resumeToken } = facts;
  const any = (type: string, value: Uint8Array) => ({
    typeUrl: `type.googleapis.com/google.rpc.${type}`,
    value: Buffer.from(value),
  });
  const info = ErrorInfo.encode({
    reason,
    domain: "kvmesh",
    metadata: resumeToken === undefined ? {} : { resume_token: resumeToken },
  });
  const details = [any("ErrorInfo", info.finish())];
  const metadata = new Metadata();
  if (retryAfterMs !== undefined) {
    const retryDelay = {
      seconds: BigInt(Math.floor(retryAfterMs / 1_000)),
      nanos: (retryAfterMs % 1_000) * 1e6,
    };
    details.push(any("RetryInfo", RetryInfo.encode({ retryDelay }).finish()));
    metadata.set("grpc-retry-pushback-ms", String(retryAfterMs));
  }
  if (quota !== undefined) {
    const violations = [{ subject: quota, description: "too much" }];
    details.push(any("QuotaFailure", QuotaFailure.encode({ violations }).finish()));
  }
  const whole = Status.encode({ code, message: "it failed", details }).finish();
  metadata.set("grpc-status-details-bin", Buffer.from(whole));
  return { code, details: "it failed", metadata };
}

async function run(
  caller: InferenceCaller,
  options: { timeoutMs?: number; resumesMax?: number; resumeToken?: string } = {},
): Promise<{ text: string; resumes: number }> {
  let text = "";
  const { resumes } = await caller.generate(request, {
    timeoutMs: 5_000,
    ...options,
    onTokens: (more) => {
      text += more.text;
    },
  });
  return { text, resumes };
}

async function failureOf(answer: Promise<unknown>): Promise<InferenceError> {
  try {
    await answer;
  } catch (error) {
    if (error instanceof InferenceError) return error;
    throw error;
  }
  throw new Error("it did not fail");
}

describe("InferenceCaller", () => {
  test("hands on tokens in order and resolves with the end", async () => {
    const relay = await startRelay({
      generate: (call) => {
        for (const [index, text] of ["a", "b", "c", "d"].entries()) call.write(tokens(index, text));
        call.write(finished);
        call.end();
      },
    });
    expect(await run(callerOf(relay))).toEqual({ text: "abcd", resumes: 0 });
    expect(relay.generates[0]).toMatchObject({ requestId: "r1", tenant: "acme" });
  });

  test("tries again before the first message, not before the server says so", async () => {
    const times: number[] = [];
    const relay = await startRelay({
      generate: (call, nth) => {
        times.push(performance.now());
        if (nth === 1) {
          const shed = { reason: "overloaded", retryAfterMs: 300 };
          call.emit("error", failure(status.RESOURCE_EXHAUSTED, shed));
          return;
        }
        call.write(finished);
        call.end();
      },
    });
    await run(callerOf(relay));
    expect(times).toHaveLength(2);
    expect((times[1] ?? 0) - (times[0] ?? 0)).toBeGreaterThanOrEqual(290);
  });

  test("goes on where a stream broke, on another relay when the first is gone", async () => {
    const first: ScriptedRelay = await startRelay({
      generate: (call) => {
        call.write(tokens(0, "a", "t0"));
        call.write(tokens(1, "b", "t1"), () => {
          setTimeout(() => {
            first.stop();
          }, 50);
        });
      },
    });
    const second = await startRelay({
      generate: (call) => call.emit("error", failure(status.INTERNAL, { reason: "wrong_relay" })),
      resume: (call) => {
        call.write({ generated: tokens(2, "c", "t2") });
        call.write({ generated: tokens(3, "d", "t3") });
        call.write({ generated: finished });
        call.end();
      },
    });
    // The first address alone begins the stream, so that which relay is chosen plays no part.
    const caller = callerOf(first, second);
    let got = "";
    for (let tries = 0; got === "" && tries < 4; tries++) {
      await run(caller).then(
        ({ text, resumes }) => {
          got = text;
          expect(resumes).toBe(1);
        },
        () => undefined,
      );
    }
    expect(got).toBe("abcd");
    expect(second.resumes.at(-1)).toMatchObject({ resumeToken: "t1", request: { model: "m" } });
  });

  test("resumes what a relay could not follow itself, and gives up after the number allowed", async () => {
    const relay = await startRelay({
      generate: (call) => {
        call.write(tokens(0, "a", "t0"), () => {
          call.emit("error", failure(status.ABORTED, { reason: "worker_lost", resumeToken: "t0" }));
        });
      },
      resume: (call, nth) => {
        const at = nth;
        call.write({ generated: tokens(at, "x", `t${String(at)}`) }, () => {
          const broken = { reason: "worker_lost", resumeToken: `t${String(at)}` };
          call.emit("error", failure(status.ABORTED, broken));
        });
      },
    });
    const failed = await failureOf(run(callerOf(relay), { resumesMax: 2 }));
    expect(relay.resumes.map(({ resumeToken }) => resumeToken)).toEqual(["t0", "t1"]);
    expect(failed).toMatchObject({
      status: status.ABORTED,
      reason: "worker_lost",
      resumeToken: "t2",
      mayRetry: false,
    });
  });

  test("does not resume a stream whose state is lost, nor one that ended by its own fault", async () => {
    const relay = await startRelay({
      generate: (call, nth) => {
        call.write(tokens(0, "a", "t0"), () => {
          const reason = nth === 1 ? "resume_lost" : "invalid_request";
          const code = nth === 1 ? status.ABORTED : status.INVALID_ARGUMENT;
          call.emit("error", failure(code, { reason }));
        });
      },
    });
    const caller = callerOf(relay);
    expect(await failureOf(run(caller))).toMatchObject({ reason: "resume_lost", resumeToken: "" });
    expect(await failureOf(run(caller))).toMatchObject({ reason: "invalid_request" });
    expect(relay.resumes).toEqual([]);
  });

  test("refuses a stream with a gap or a repetition", async () => {
    const relay = await startRelay({
      generate: (call, nth) => {
        call.write(tokens(0, "a"));
        call.write(tokens(nth === 1 ? 2 : 0, "b"));
        call.write(finished);
        call.end();
      },
    });
    const caller = callerOf(relay);
    expect((await failureOf(run(caller))).message).toContain("index 2 came where 1 is due");
    expect((await failureOf(run(caller))).message).toContain("index 0 came where 1 is due");
  });

  test("reads reason, wait, limits and resume token of a status", async () => {
    const relay = await startRelay({
      generate: (call) => {
        const limited = { reason: "tenant_limited", retryAfterMs: 60_500, quota: "tenant:acme" };
        call.emit("error", failure(status.RESOURCE_EXHAUSTED, limited));
      },
    });
    // The wait is longer than the request may take, so that no try is left.
    const failed = await failureOf(run(callerOf(relay), { timeoutMs: 400 }));
    expect([status.RESOURCE_EXHAUSTED, status.DEADLINE_EXCEEDED]).toContain(failed.status);
    const caller = new InferenceCaller([relay.address], { retries: false });
    open.push(caller);
    expect(await failureOf(run(caller))).toMatchObject({
      status: status.RESOURCE_EXHAUSTED,
      statusName: "RESOURCE_EXHAUSTED",
      reason: "tenant_limited",
      retryAfterMs: 60_500,
      quotas: [{ subject: "tenant:acme", description: "too much" }],
      mayRetry: true,
      requestId: "r1",
    });
  });

  test("an abort cancels at the relay and ends the call", async () => {
    const relay = await startRelay({
      generate: (call) => {
        call.write(tokens(0, "a", "t0"));
      },
    });
    const stop = new AbortController();
    const failed = await failureOf(
      callerOf(relay).generate(request, {
        signal: stop.signal,
        onTokens: () => {
          stop.abort();
        },
      }),
    );
    expect(failed.status).toBe(status.CANCELLED);
    expect(relay.cancels).toEqual(["r1"]);
    expect(relay.resumes).toEqual([]);
  });

  test("a stream that its caller goes on with begins with Resume", async () => {
    const relay = await startRelay({
      resume: (call) => {
        call.write({ generated: tokens(7, "z") });
        call.write({ generated: finished });
        call.end();
      },
    });
    expect(await run(callerOf(relay), { resumeToken: "kept" })).toEqual({ text: "z", resumes: 0 });
    expect(relay.resumes[0]?.resumeToken).toBe("kept");
  });

  test.each([
    [[], "no address"],
    [["nowhere"], "is not host:port"],
    [["relay.mesh.svc:9100", "127.0.0.1:9100"], "must all be IP addresses"],
    [["127.0.0.1:9100", "[::1]:9100"], "must all be IP addresses of one version"],
  ])("refuses the addresses %j", (addresses, text) => {
    expect(() => new InferenceCaller(addresses)).toThrow(text);
  });
});
