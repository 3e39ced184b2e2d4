import { request } from "undici";
import { MeshError } from "../../../shared/core/errors.ts";

/** Longest wait for a first token, ms. */
const firstTokenMsMax = 10_000;

/** Asks for a short streamed answer and resolves when its first bytes come. Fails with the answer's error. */
export async function firstToken(url: string, model: string): Promise<void> {
  const { statusCode, body } = await request(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model,
      stream: true,
      max_tokens: 4,
      messages: [{ role: "user", content: "Hello!" }],
    }),
    signal: AbortSignal.timeout(firstTokenMsMax),
  });
  if (statusCode !== 200) {
    const text = (await body.text()).slice(0, 500);
    throw new MeshError("worker_lost", `the first request got HTTP ${statusCode}: ${text}`);
  }
  let seen = false;
  for await (const chunk of body) seen ||= (chunk as Buffer).length > 0;
  if (!seen) throw new MeshError("worker_lost", "the first request got an empty answer");
}
