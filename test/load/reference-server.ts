/**
 * What the router is compared with, a process of its own: `reference-server.ts empty` is a grpc-js handler that
 * parses the JSON of a BUFFERED body and answers; `stock` also renders the chat template and tokenizes with the
 * packages that everybody uses. Neither hashes, looks anything up or scores.
 */
import { join } from "node:path";
import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "tokenizers";
import { tolerateResets } from "../../services/shared/edge/grpc-server.ts";
import {
  ExternalProcessorService,
  type ExternalProcessorServer,
  type ProcessingRequest,
  type ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import { modelFolder, readChatTemplate } from "./scripted-members.ts";

type Call = ServerDuplexStream<ProcessingRequest, ProcessingResponse>;
type Part = NonNullable<ProcessingResponse["response"]>;
interface ChatBody {
  readonly messages: readonly unknown[];
}

const isStock = process.argv[2] === "stock";
const tokenizer = isStock ? Tokenizer.fromFile(join(modelFolder, "tokenizer.json")) : undefined;
const template = new Template(readChatTemplate());

function answer(response: Part): ProcessingResponse {
  return {
    response,
    dynamicMetadata: undefined,
    modeOverride: undefined,
    overrideMessageTimeout: undefined,
    requestDrain: false,
  };
}

const passing = {
  status: 0,
  headerMutation: undefined,
  bodyMutation: undefined,
  trailers: undefined,
  clearRouteCache: false,
} as const;

function routed(tokens: number): Part {
  const rawValue = Buffer.from(`127.0.0.1:${(8_000 + (tokens % 8)).toString()}`);
  const header = { key: "x-gateway-destination-endpoint", value: "", rawValue };
  const headerMutation = {
    setHeaders: [{ header, appendAction: 2 as const, keepEmptyValue: false }],
    removeHeaders: [],
  };
  return {
    $case: "requestBody",
    value: { response: { ...passing, headerMutation, clearRouteCache: true } },
  };
}

async function countTokens(body: ChatBody): Promise<number> {
  if (tokenizer === undefined) return body.messages.length;
  const text = template.render({ messages: body.messages, add_generation_prompt: true });
  const encoding = await tokenizer.encode(text, null, { addSpecialTokens: false });
  return encoding.getIds().length;
}

async function receive(call: Call, { request }: ProcessingRequest): Promise<void> {
  if (request?.$case === "requestHeaders") {
    call.write(answer({ $case: "requestHeaders", value: { response: passing } }));
  } else if (request?.$case === "requestBody") {
    const body = JSON.parse(request.value.body.toString("utf8")) as ChatBody;
    call.write(answer(routed(await countTokens(body))));
    call.end();
  }
}

const service: ExternalProcessorServer = {
  process: (call: Call) => {
    call.on("data", (request: ProcessingRequest) => {
      receive(call, request).catch((error: unknown) => {
        call.emit("error", error);
      });
    });
    call.on("error", () => undefined);
  },
};

// The same window and message sizes as the router's server.
const server = new Server({
  "grpc.max_receive_message_length": 64 * 1024 * 1024,
  "grpc-node.flow_control_window": 4 * 1024 * 1024,
});
tolerateResets(server);
server.addService(ExternalProcessorService, service);
server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
  if (error !== null) throw error;
  process.send?.({ kind: "ready", port });
});
process.on("disconnect", () => process.exit(0));
