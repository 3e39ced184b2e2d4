import { readFileSync, writeFileSync } from "node:fs";
import {
  Server,
  ServerCredentials,
  type ClientWritableStream,
  type ServerReadableStream,
  type sendUnaryData,
} from "@grpc/grpc-js";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { createChannelCredentials } from "../../services/shared/edge/grpc-client.ts";
import {
  AccessLogServiceClient,
  AccessLogServiceService,
  type AccessLogServiceServer,
  type StreamAccessLogsMessage,
  type StreamAccessLogsResponse,
} from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import type { TestMesh } from "./mesh.ts";

/** Stands between Envoy's access log and the routers and loses some of the records. */
export interface LossyAccessLog {
  readonly port: number;
  /** Share of records that is lost, 0 to 1; may be changed. */
  lossRatio: number;
  readonly seen: number;
  readonly lost: number;
  stop(): Promise<void>;
}

/**
 * Starts one on a free port. Each stream of Envoy goes on to one of the routers in turn, message by message as it
 * came, without the records that are lost; which ones is drawn from a fixed seed.
 */
export async function startLossyAccessLog(routers: readonly string[]): Promise<LossyAccessLog> {
  const random = new SeededRandom(10);
  const clients = routers.map(
    (address) => new AccessLogServiceClient(address, createChannelCredentials()),
  );
  let streams = 0;
  let seen = 0;
  let lost = 0;
  let lossRatio = 0;
  const keep = (): boolean => {
    seen++;
    if (random.next() >= lossRatio) return true;
    lost++;
    return false;
  };
  const forward = (
    message: StreamAccessLogsMessage,
    to: ClientWritableStream<StreamAccessLogsMessage>,
  ): void => {
    const { logEntries } = message;
    if (logEntries?.$case !== "httpLogs") {
      to.write(message);
      return;
    }
    const logEntry = logEntries.value.logEntry.filter(keep);
    to.write({ ...message, logEntries: { $case: "httpLogs", value: { logEntry } } });
  };
  const service: AccessLogServiceServer = {
    streamAccessLogs: (
      call: ServerReadableStream<StreamAccessLogsMessage, StreamAccessLogsResponse>,
      callback: sendUnaryData<StreamAccessLogsResponse>,
    ) => {
      const client = clients[streams++ % clients.length];
      if (client === undefined) throw new Error("no router to send records to");
      const onward = client.streamAccessLogs((error, response) => {
        callback(error, error === null ? response : null);
      });
      // The callback above tells Envoy, which then opens another stream.
      onward.on("error", () => undefined);
      call.on("data", (message: StreamAccessLogsMessage) => {
        forward(message, onward);
      });
      call.on("end", () => {
        onward.end();
      });
      call.on("cancelled", () => {
        onward.cancel();
      });
      call.on("error", () => undefined);
    },
  };
  const server = new Server();
  server.addService(AccessLogServiceService, service);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) resolve(bound);
      else reject(error);
    });
  });
  return {
    port,
    get lossRatio() {
      return lossRatio;
    },
    set lossRatio(ratio: number) {
      lossRatio = ratio;
    },
    get seen() {
      return seen;
    },
    get lost() {
      return lost;
    },
    stop: async () => {
      server.forceShutdown();
      for (const client of clients) client.close();
      await Promise.resolve();
    },
  };
}

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const isMap = (value: Json | undefined): value is { [key: string]: Json } =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Writes a mesh's Envoy configuration anew so that the gRPC access log of every listener goes to a cluster of its own
 * at `port`; everything else, ext_proc included, still goes to the routers. Takes effect when Envoy starts again.
 */
export function sendAccessLogTo(mesh: TestMesh, port: number): void {
  const path = mesh.state.file("envoy.json");
  const bootstrap = JSON.parse(readFileSync(path, "utf8")) as Json;
  let moved = 0;
  const visit = (value: Json): void => {
    if (Array.isArray(value)) value.forEach(visit);
    if (!isMap(value)) return;
    if (value["name"] === "envoy.access_loggers.http_grpc") {
      const typed = value["typed_config"];
      const common = isMap(typed) ? typed["common_config"] : undefined;
      if (!isMap(common)) throw new Error("the access log has no common_config");
      common["grpc_service"] = { envoy_grpc: { cluster_name: "lossy_access_log" } };
      moved++;
    }
    Object.values(value).forEach(visit);
  };
  visit(bootstrap);
  const resources = isMap(bootstrap) ? bootstrap["static_resources"] : undefined;
  const clusters = isMap(resources) ? resources["clusters"] : undefined;
  if (moved === 0 || !Array.isArray(clusters)) throw new Error("no access log found to redirect");
  const options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
  const address = { socket_address: { address: "127.0.0.1", port_value: port } };
  clusters.push({
    name: "lossy_access_log",
    type: "STATIC",
    connect_timeout: "1s",
    typed_extension_protocol_options: {
      [options]: {
        "@type": `type.googleapis.com/${options}`,
        explicit_http_config: { http2_protocol_options: {} },
      },
    },
    load_assignment: {
      cluster_name: "lossy_access_log",
      endpoints: [{ lb_endpoints: [{ endpoint: { address } }] }],
    },
  });
  writeFileSync(path, JSON.stringify(bootstrap));
}
