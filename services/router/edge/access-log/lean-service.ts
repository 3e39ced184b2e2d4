import type { GrpcMethod } from "../../../shared/edge/h2/grpc-stream.ts";
import type { AccessRecord } from "./access-record.ts";
import { RecordReader } from "./record-reader.ts";

/** The gRPC status of a peer that breaks the protocol. */
const invalidArgument = 3;
/** StreamAccessLogsResponse has no fields. */
const response = new Uint8Array(0);

/** Envoy's gRPC access log for the lean HTTP/2 server: hands every record to `onRecord`. */
export function createLeanAccessLog(onRecord: (record: AccessRecord) => void): GrpcMethod {
  const reader = new RecordReader();
  return (call) => {
    let broken = false;
    return {
      onMessage(message) {
        if (broken) return;
        let records;
        try {
          records = reader.read(message);
        } catch (error) {
          broken = true;
          const why = error instanceof Error ? error.message : String(error);
          call.end(invalidArgument, `the message is no StreamAccessLogsMessage: ${why}`);
          return;
        }
        for (const record of records) onRecord(record);
      },
      onHalfClose() {
        call.send(response);
        call.end();
      },
      // Envoy breaks the stream when it goes away; it opens another one when it is back.
      onClose: () => undefined,
    };
  };
}
