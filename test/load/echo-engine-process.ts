/**
 * An engine for benchmarks, a process of its own: reads a request whole and answers with one short event stream after
 * `delayMs` (first argument). Tells its port over IPC.
 */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

const delayMs = Number(process.argv[2] ?? "0");
const answer =
  'data: {"choices":[{"index":0,"text":"ok","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n';

const server = createServer((request, response) => {
  request.resume();
  request.on("end", () => {
    const send = (): void => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.end(answer);
    };
    if (delayMs > 0) setTimeout(send, delayMs);
    else send();
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", 1_024, () => {
  process.send?.({ kind: "ready", port: (server.address() as AddressInfo).port });
});
process.on("disconnect", () => process.exit(0));
