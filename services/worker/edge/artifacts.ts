import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { MeshError } from "../../shared/core/errors.ts";

const fileBytesMax = 256 * 1024 * 1024;

/** Files of the model that routers may ask for, by SHA-256 in hex. */
export interface Artifacts {
  readonly tokenizerSha256: Buffer;
  readonly chatTemplateSha256: Buffer;
  readonly addsSpecialTokens: boolean;
  /** Texts that chat templates may use; empty when there is none. */
  readonly bosToken: string;
  readonly eosToken: string;
  readonly files: ReadonlyMap<string, Buffer>;
}

/** What a worker without a model folder has. */
export const noArtifacts: Artifacts = {
  tokenizerSha256: Buffer.alloc(0),
  chatTemplateSha256: Buffer.alloc(0),
  addsSpecialTokens: false,
  bosToken: "",
  eosToken: "",
  files: new Map(),
};

const NamedTemplates = z.array(z.object({ name: z.string(), template: z.string() }));
const TokenText = z.union([z.string(), z.object({ content: z.string() })]).nullish();
const TokenizerConfig = z.object({
  chat_template: z.union([z.string(), NamedTemplates]).nullish(),
  bos_token: TokenText,
  eos_token: TokenText,
});
type TokenizerConfig = z.infer<typeof TokenizerConfig>;

interface PostProcessor {
  readonly type?: string | undefined;
  readonly processors?: readonly PostProcessor[] | undefined;
  readonly single?: readonly Record<string, unknown>[] | undefined;
}
const PostProcessor: z.ZodType<PostProcessor> = z.lazy(() =>
  z.object({
    type: z.string().optional(),
    processors: z.array(PostProcessor).optional(),
    single: z.array(z.record(z.string(), z.unknown())).optional(),
  }),
);
const Tokenizer = z.object({ post_processor: PostProcessor.nullish() });

/**
 * Reads tokenizer and chat template from a Hugging Face model folder: `tokenizer.json`, and the template
 * from `chat_template.jinja` or else from `tokenizer_config.json`. Errors (`invalid_request`) name the file.
 */
export function readArtifacts(modelDir: string): Artifacts {
  const tokenizer = readFile(join(modelDir, "tokenizer.json"));
  const configPath = join(modelDir, "tokenizer_config.json");
  const config = existsSync(configPath)
    ? parse(readFile(configPath), configPath, TokenizerConfig)
    : {};
  const template = readTemplate(modelDir, config);
  const files = new Map<string, Buffer>();
  const keep = (content: Buffer): Buffer => {
    const sha256 = createHash("sha256").update(content).digest();
    files.set(sha256.toString("hex"), content);
    return sha256;
  };
  return {
    tokenizerSha256: keep(tokenizer),
    chatTemplateSha256: template === undefined ? Buffer.alloc(0) : keep(template),
    addsSpecialTokens: addsSpecialTokens(tokenizer, modelDir),
    bosToken: tokenText(config.bos_token),
    eosToken: tokenText(config.eos_token),
    files,
  };
}

function readFile(path: string): Buffer {
  let content: Buffer;
  try {
    content = readFileSync(path);
  } catch (error) {
    throw new MeshError(
      "invalid_request",
      `${path} cannot be read: ${(error as Error).message}; worker.engine.modelDir must be the model's folder, with tokenizer.json in it`,
      { cause: error, field: "engine.modelDir" },
    );
  }
  if (content.length > fileBytesMax) {
    throw new MeshError(
      "invalid_request",
      `${path} has ${String(content.length)} bytes, more than ${String(fileBytesMax)}`,
      { field: "engine.modelDir" },
    );
  }
  return content;
}

function parse<T>(content: Buffer, path: string, schema: z.ZodType<T>): T {
  try {
    return schema.parse(JSON.parse(content.toString("utf8")));
  } catch (error) {
    throw new MeshError("invalid_request", `${path} is not what it should be: ${String(error)}`, {
      cause: error,
      field: "engine.modelDir",
    });
  }
}

function tokenText(token: TokenizerConfig["bos_token"]): string {
  return typeof token === "string" ? token : (token?.content ?? "");
}

function readTemplate(modelDir: string, config: TokenizerConfig): Buffer | undefined {
  const jinja = join(modelDir, "chat_template.jinja");
  if (existsSync(jinja)) return readFile(jinja);
  const template = config.chat_template;
  if (template === null || template === undefined) return undefined;
  if (typeof template === "string") return Buffer.from(template, "utf8");
  const named = template.find((entry) => entry.name === "default") ?? template[0];
  return named === undefined ? undefined : Buffer.from(named.template, "utf8");
}

/** A plain prompt gets special tokens when the tokenizer's post-processor puts some around a single text. */
function addsSpecialTokens(tokenizer: Buffer, modelDir: string): boolean {
  const path = join(modelDir, "tokenizer.json");
  const { post_processor: root } = parse(tokenizer, path, Tokenizer);
  const adds = (processor: PostProcessor): boolean => {
    switch (processor.type) {
      case "Sequence":
        return (processor.processors ?? []).some(adds);
      case "TemplateProcessing":
        return (processor.single ?? []).some((piece) => "SpecialToken" in piece);
      case "BertProcessing":
      case "RobertaProcessing":
        return true;
      default:
        return false;
    }
  };
  return root === null || root === undefined ? false : adds(root);
}
