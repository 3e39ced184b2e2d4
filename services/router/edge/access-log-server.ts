import type { ServerReadableStream, sendUnaryData } from "@grpc/grpc-js";
import type {
  AccessLogServiceServer,
  StreamAccessLogsMessage,
  StreamAccessLogsResponse,
} from "../../shared/gen/envoy/service/accesslog/v3/als.ts";
import { readAccessRecord, type AccessRecord } from "./access-log/access-record.ts";

/** Envoy's gRPC access log on grpc-js with generated messages: hands every record to `onRecord`. */
export function createAccessLogService(
  onRecord: (record: AccessRecord) => void,
): AccessLogServiceServer {
  return {
    streamAccessLogs: (
      call: ServerReadableStream<StreamAccessLogsMessage, StreamAccessLogsResponse>,
      callback: sendUnaryData<StreamAccessLogsResponse>,
    ) => {
      call.on("data", (message: StreamAccessLogsMessage) => {
        if (message.logEntries?.$case !== "httpLogs") return;
        for (const entry of message.logEntries.value.logEntry) onRecord(readAccessRecord(entry));
      });
      call.on("end", () => {
        callback(null, {});
      });
      // Envoy breaks the stream when it goes away; it opens another one when it is back.
      call.on("error", () => undefined);
    },
  };
}
