import type { IncomingMessage } from "node:http";
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { MeshError } from "../../shared/core/errors.ts";

const unzip = promisify(gunzip);

/** Memory that request bodies may take, all together. */
export class BodyBudget {
  readonly #bytesMax: number;
  #bytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Takes bytes; throws `overloaded` when too many are being read. */
  take(bytes: number): void {
    if (this.#bytes + bytes > this.#bytesMax) {
      throw new MeshError(
        "overloaded",
        `bodies being read hold ${this.#bytes.toString()} of ${this.#bytesMax.toString()} bytes; send again later`,
        { retryAfterMs: 1_000 },
      );
    }
    this.#bytes += bytes;
  }

  /** Gives bytes back. */
  give(bytes: number): void {
    this.#bytes -= bytes;
  }
}

function tooLarge(bytesMax: number): MeshError {
  return new MeshError(
    "request_too_large",
    `body is larger than ${bytesMax.toString()} bytes: send smaller batches, or raise console.otlp.messageBytesMax`,
  );
}

async function readAll(
  request: IncomingMessage,
  bytesMax: number,
  taken: (bytes: number) => void,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > bytesMax) throw tooLarge(bytesMax);
    taken(chunk.length);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, size);
}

async function unzipped(bytes: Buffer, bytesMax: number): Promise<Buffer> {
  try {
    return await unzip(bytes, { maxOutputLength: bytesMax });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw tooLarge(bytesMax);
    throw new MeshError("invalid_request", `body is not gzip: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/**
 * Reads a body, unzips it when `content-encoding` says gzip, and hands it to `use`, all within the limits. Throws
 * `request_too_large`, `overloaded`, or `invalid_request` for an unknown or broken encoding.
 */
export async function withBody<T>(
  request: IncomingMessage,
  limits: { readonly bytesMax: number; readonly budget: BodyBudget },
  use: (body: Buffer) => T,
): Promise<T> {
  const encoding = (request.headers["content-encoding"] ?? "identity").toLowerCase();
  if (encoding !== "identity" && encoding !== "gzip") {
    throw new MeshError(
      "invalid_request",
      `content-encoding ${encoding}: must be gzip or identity`,
    );
  }
  if (Number(request.headers["content-length"] ?? 0) > limits.bytesMax)
    throw tooLarge(limits.bytesMax);
  let held = 0;
  const take = (bytes: number): void => {
    limits.budget.take(bytes);
    held += bytes;
  };
  try {
    const raw = await readAll(request, limits.bytesMax, take);
    if (encoding === "identity") return use(raw);
    const body = await unzipped(raw, limits.bytesMax);
    take(body.length);
    return use(body);
  } finally {
    limits.budget.give(held);
  }
}
