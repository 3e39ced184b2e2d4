/**
 * The same ext_proc calls to a grpc-js server and to ours: what a generated client sees must be equal. grpc-js is the
 * oracle.
 */
import {
  credentials,
  Server,
  ServerCredentials,
  status,
  type ServerDuplexStream,
  type ServiceError,
} from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  createH2GrpcServer,
  type H2GrpcServer,
} from "../../services/shared/edge/h2/h2-grpc-server.ts";
import {
  ExternalProcessorClient,
  ExternalProcessorService,
  ProcessingRequest,
  ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";

const messageBytesMax = 8 << 20;
const channelOptions = {
  "grpc.max_receive_message_length": messageBytesMax,
  "grpc.use_local_subchannel_pool": 1,
};

/** What a processor does with one request: an answer, an end with a status, or silence. */
function process({ request }: ProcessingRequest): ProcessingResponse | number | undefined {
  const base = {
    dynamicMetadata: undefined,
    modeOverride: undefined,
    overrideMessageTimeout: undefined,
    requestDrain: false,
  };
  const common = {
    status: 0,
    headerMutation: undefined,
    trailers: undefined,
    clearRouteCache: false,
  } as const;
  if (request?.$case === "requestHeaders") {
    const asked = request.value.headers?.headers[0]?.rawValue.toString();
    if (asked === "silent") return undefined;
    if (asked === "fail") return status.FAILED_PRECONDITION;
    const value = { response: { ...common, bodyMutation: undefined } };
    return { ...base, response: { $case: "requestHeaders", value } };
  }
  if (request?.$case !== "requestBody") return status.INVALID_ARGUMENT;
  const { body, endOfStream } = request.value;
  const streamed = {
    body,
    endOfStream,
    endOfStreamWithoutMessage: false,
    grpcMessageCompressed: false,
  };
  const bodyMutation = { mutation: { $case: "streamedResponse" as const, value: streamed } };
  return {
    ...base,
    response: { $case: "requestBody", value: { response: { ...common, bodyMutation } } },
  };
}

function createOracle(): Server {
  const server = new Server({ "grpc.max_receive_message_length": messageBytesMax });
  server.addService(ExternalProcessorService, {
    process: (call: ServerDuplexStream<ProcessingRequest, ProcessingResponse>) => {
      call.on("data", (request: ProcessingRequest) => {
        const answer = process(request);
        if (typeof answer === "number") call.emit("error", { code: answer, details: "as asked" });
        else if (answer !== undefined) call.write(answer);
      });
      call.on("end", () => {
        call.end();
      });
      call.on("error", () => undefined);
    },
  });
  return server;
}

function createOurs(): H2GrpcServer {
  return createH2GrpcServer({
    limits: { messageBytesMax },
    methods: new Map([
      [
        ExternalProcessorService.process.path,
        (stream) => ({
          onMessage: (message) => {
            const answer = process(ProcessingRequest.decode(message));
            if (typeof answer === "number") stream.end(answer, "as asked");
            else if (answer !== undefined) stream.send(ProcessingResponse.encode(answer).finish());
          },
          onHalfClose: () => {
            stream.end();
          },
          onClose: () => undefined,
        }),
      ],
    ]),
  });
}

const plain = {
  metadataContext: undefined,
  attributes: {},
  observabilityMode: false,
  protocolConfig: undefined,
};

function headersRequest(word: string): ProcessingRequest {
  const headers = [{ key: "x-ask", value: "", rawValue: Buffer.from(word) }];
  const value = { headers: { headers }, endOfStream: false };
  return { ...plain, request: { $case: "requestHeaders", value } };
}

function bodyRequest(body: Buffer, endOfStream: boolean): ProcessingRequest {
  const value = {
    body,
    endOfStream,
    endOfStreamWithoutMessage: false,
    grpcMessageCompressed: false,
  };
  return { ...plain, request: { $case: "requestBody", value } };
}

/** What a client sees of a call: the answers' kinds, the body that came back, the final status. */
interface Seen {
  readonly answers: readonly string[];
  readonly body: Buffer;
  readonly code: number;
  readonly details: string;
}

interface Script {
  readonly requests: readonly ProcessingRequest[];
  readonly deadlineMs?: number;
  /** Cancels after so many answers. */
  readonly cancelAfter?: number;
  readonly staysOpen?: boolean;
}

function run(client: ExternalProcessorClient, script: Script): Promise<Seen> {
  return new Promise((resolve) => {
    const call = client.process({ deadline: Date.now() + (script.deadlineMs ?? 20_000) });
    const answers: string[] = [];
    const parts: Buffer[] = [];
    let failure: ServiceError | undefined;
    call.on("data", ({ response }: ProcessingResponse) => {
      answers.push(response?.$case ?? "none");
      const mutation =
        response?.$case === "requestBody"
          ? response.value.response?.bodyMutation?.mutation
          : undefined;
      if (mutation?.$case === "streamedResponse") parts.push(mutation.value.body);
      if (answers.length === script.cancelAfter) call.cancel();
    });
    call.on("error", (error: ServiceError) => {
      failure = error;
    });
    call.on("status", ({ code, details }) => {
      const text = failure?.details ?? details;
      // How long a call waited is part of grpc-js's own text, and its server says "OK" where ours says nothing.
      const shown = code === status.DEADLINE_EXCEEDED || code === status.OK ? "" : text;
      resolve({ answers, body: Buffer.concat(parts), code, details: shown });
    });
    for (const request of script.requests) call.write(request);
    if (script.staysOpen !== true) call.end();
  });
}

function pieces(bytes: number, pieceBytes: number): ProcessingRequest[] {
  const body = Buffer.alloc(bytes, "the quick brown fox ");
  const list: ProcessingRequest[] = [];
  for (let at = 0; at === 0 || at < bytes; at += pieceBytes) {
    list.push(bodyRequest(body.subarray(at, at + pieceBytes), at + pieceBytes >= bytes));
  }
  return list;
}

let oracle: Server;
let ours: H2GrpcServer;
let clients: { readonly oracle: ExternalProcessorClient; readonly ours: ExternalProcessorClient };

beforeAll(async () => {
  oracle = createOracle();
  ours = createOurs();
  const oraclePort = await new Promise<number>((resolve, reject) => {
    oracle.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
      if (error === null) resolve(port);
      else reject(error);
    });
  });
  const ourPort = await ours.listen("127.0.0.1", 0);
  const client = (port: number): ExternalProcessorClient =>
    new ExternalProcessorClient(
      `127.0.0.1:${port.toString()}`,
      credentials.createInsecure(),
      channelOptions,
    );
  clients = { oracle: client(oraclePort), ours: client(ourPort) };
});

afterAll(async () => {
  clients.oracle.close();
  clients.ours.close();
  oracle.forceShutdown();
  await ours.close();
});

async function both(script: Script): Promise<Seen> {
  const [expected, seen] = await Promise.all([
    run(clients.oracle, script),
    run(clients.ours, script),
  ]);
  expect({ ...seen, body: seen.body.length }).toEqual({ ...expected, body: expected.body.length });
  expect(seen.body.equals(expected.body)).toBe(true);
  return seen;
}

describe("a generated ext_proc client sees the same of grpc-js and of ours", () => {
  test.each([0, 1, 1_000, 16_384, 65_536, 220_000, 512_000, 3_000_000])(
    "for a buffered body of %i bytes",
    async (bytes) => {
      const requests = [headersRequest("route"), ...pieces(bytes, Math.max(1, bytes))];
      const seen = await both({ requests });
      expect(seen).toMatchObject({ answers: ["requestHeaders", "requestBody"], code: status.OK });
      expect(seen.body).toHaveLength(bytes);
    },
  );

  test.each([1, 16_384, 100_000, 3_000_000])("for a body of %i bytes in pieces", async (bytes) => {
    const seen = await both({ requests: [headersRequest("route"), ...pieces(bytes, 16_384)] });
    expect(seen.answers).toHaveLength(1 + Math.ceil(bytes / 16_384));
    expect(seen.body).toHaveLength(bytes);
  });

  test("for 200 calls at once", async () => {
    const seen = await Promise.all(
      Array.from({ length: 200 }, (_, i) =>
        both({ requests: [headersRequest("route"), ...pieces(i * 331, 5_000)] }),
      ),
    );
    seen.forEach(({ body }, i) => {
      expect(body).toHaveLength(i * 331);
    });
  });

  test("for a call that the handler fails", async () => {
    const seen = await both({
      requests: [headersRequest("fail"), bodyRequest(Buffer.alloc(9), true)],
    });
    expect(seen).toMatchObject({ code: status.FAILED_PRECONDITION, details: "as asked" });
  });

  test("for a call past its deadline", async () => {
    const seen = await both({
      requests: [headersRequest("silent")],
      deadlineMs: 200,
      staysOpen: true,
    });
    expect(seen).toMatchObject({ answers: [], code: status.DEADLINE_EXCEEDED });
  });

  test("for a call that the client cancels", async () => {
    const requests = [headersRequest("route"), ...pieces(50_000, 10_000)];
    const seen = await both({ requests, cancelAfter: 1, staysOpen: true });
    expect(seen.code).toBe(status.CANCELLED);
  });

  test("for a message above the limit", async () => {
    const [expected, seen] = await Promise.all(
      [clients.oracle, clients.ours].map((client) =>
        run(client, { requests: pieces(messageBytesMax + 1, messageBytesMax + 1) }),
      ),
    );
    expect(seen?.code).toBe(expected?.code);
    expect(seen?.code).toBe(status.RESOURCE_EXHAUSTED);
  });

  test("for a call without messages", async () => {
    expect(await both({ requests: [] })).toMatchObject({ answers: [], code: status.OK });
  });

  test("and nothing is left open", () => {
    expect(ours.counts()).toMatchObject({ streams: 0, bufferedBytes: 0 });
  });
});
