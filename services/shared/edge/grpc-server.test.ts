import { Metadata, status, type ServiceError } from "@grpc/grpc-js";
import { afterEach, describe, expect, test } from "vitest";
import { parseCidr } from "../core/cidr.ts";
import { MeshError } from "../core/errors.ts";
import {
  RouterClient,
  RouterService,
  type ReleaseRequest,
  type ReleaseResponse,
} from "../gen/kvmesh/router/v1/router.ts";
import { createChannelCredentials, createChannelOptions } from "./grpc-client.ts";
import { createGrpcServer, listen, peerAddress, toServiceError, unary } from "./grpc-server.ts";

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

async function serve(allowed: string, handle: (request: ReleaseRequest) => ReleaseResponse) {
  const refusals: string[] = [];
  const server = createGrpcServer({
    callers: [
      { service: "kvmesh.router.v1.Router", allowed: [parseCidr(allowed)].flatMap((c) => c ?? []) },
    ],
    onRefused: (service) => refusals.push(service),
    messageBytesMax: 1_048_576,
  });
  const missing = (): never => {
    throw new Error("not called");
  };
  server.add(RouterService, {
    release: unary<ReleaseRequest, ReleaseResponse>(handle),
    place: missing,
    explain: missing,
    setPolicy: missing,
    watchPlacements: missing,
    watchTopology: missing,
  });
  const port = await listen(server.server, "127.0.0.1", 0);
  const client = new RouterClient(
    `127.0.0.1:${port}`,
    createChannelCredentials(),
    createChannelOptions(),
  );
  closers.push(() => {
    client.close();
    server.server.forceShutdown();
  });
  const release = (decisionId: string): Promise<ReleaseResponse | ServiceError> =>
    new Promise((resolve) => {
      client.release({ decisionId }, (error, response) => {
        resolve(error ?? response);
      });
    });
  return { release, refusals };
}

describe("createGrpcServer", () => {
  test("serves callers on the allow-list", async () => {
    const { release } = await serve("127.0.0.0/8", () => ({ wasOpen: true }));
    expect(await release("a")).toEqual({ wasOpen: true });
  });

  test("refuses other callers before the handler runs", async () => {
    const { release, refusals } = await serve("10.0.0.0/8", () => {
      throw new Error("must not run");
    });
    expect(await release("a")).toMatchObject({ code: status.PERMISSION_DENIED });
    expect(refusals).toEqual(["kvmesh.router.v1.Router"]);
  });

  test("maps a thrown error to status, code and retry hint", async () => {
    const { release } = await serve("127.0.0.0/8", () => {
      throw new MeshError("overloaded", "queue full: depth 4 of 4", { retryAfterMs: 1_500.2 });
    });
    const error = (await release("a")) as ServiceError;
    expect(error).toMatchObject({
      code: status.RESOURCE_EXHAUSTED,
      details: "queue full: depth 4 of 4",
    });
    expect(error.metadata.get("kvmesh-error-code")).toEqual(["overloaded"]);
    expect(error.metadata.get("grpc-retry-pushback-ms")).toEqual(["1501"]);
  });

  test("refuses to add a service without a caller rule", () => {
    const server = createGrpcServer({ callers: [], messageBytesMax: 1_024 });
    expect(() => {
      server.add(RouterService, {});
    }).toThrow(/no caller rule/);
  });
});

test("what is no MeshError becomes an internal error", () => {
  expect(toServiceError(new Error("x")).code).toBe(status.INTERNAL);
  expect(toServiceError(new Error("x")).metadata).toBeInstanceOf(Metadata);
});

test("a peer's address loses its port and brackets", () => {
  expect(peerAddress("127.0.0.1:5000")).toBe("127.0.0.1");
  expect(peerAddress("[::1]:5000")).toBe("::1");
  expect(peerAddress("ipv4:10.0.0.1:1")).toBe("10.0.0.1");
});
