import { ByteReader } from "../../../shared/core/placement-token/byte-reader.ts";
import { ByteWriter } from "../../../shared/core/placement-token/byte-writer.ts";
import type { ChunkFrame, ResumedFrom } from "../guard/guarded-stream.ts";
import type { MirroredState } from "./mirror-store.ts";
import type { ResumePoint } from "./resume-token.ts";

/** Ids as 4 bytes each, low byte first. */
export function packIds(ids: Uint32Array): Uint8Array {
  const bytes = new Uint8Array(4 * ids.length);
  const view = new DataView(bytes.buffer);
  ids.forEach((id, index) => {
    view.setUint32(4 * index, id, true);
  });
  return bytes;
}

/** The ids of `packIds`; a part of one at the end is left out. */
export function unpackIds(bytes: Uint8Array): Uint32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const ids = new Uint32Array(bytes.length >> 2);
  for (let i = 0; i < ids.length; i++) ids[i] = view.getUint32(4 * i, true);
  return ids;
}

/**
 * What a continuation elsewhere needs beside the generated ids: the frame of the chunks, the prompt's ids, and the W3C
 * context of the request, which is empty when it is not traced.
 */
export function writeHead(head: {
  readonly frame: ChunkFrame;
  readonly promptIds: Uint32Array;
  readonly traceparent: string;
}): Uint8Array {
  const { frame, promptIds } = head;
  const out = new ByteWriter();
  out.text(frame.id);
  out.text(frame.created);
  out.text(frame.model);
  out.text(head.traceparent);
  out.raw(packIds(promptIds));
  return out.written().slice();
}

/**
 * Puts a stream together from what its buddy kept and what its token carries. `undefined` when ids in between are missing
 * or the head never came: the stream is lost.
 */
export function restoreStream(kept: MirroredState, resume: ResumePoint): ResumedFrom | undefined {
  const input = new ByteReader(kept.head);
  const frame = { id: input.text(), created: input.text(), model: input.text() };
  const traceparent = input.text();
  const promptIds = unpackIds(input.raw(kept.head.length - input.at));
  const ids = unpackIds(kept.ids);
  const { index } = resume.point;
  if (!input.isDone || promptIds.length === 0) return undefined;
  if (ids.length < Math.min(index, resume.looseFrom)) return undefined;
  const generated = new Uint32Array(index);
  generated.set(ids.subarray(0, Math.min(index, ids.length)));
  // What the client has counts, should the two ever differ.
  generated.set(resume.looseIds, resume.looseFrom);
  return { promptIds, generated, point: resume.point, frame, traceparent };
}
