import { readFileSync } from "node:fs";

/** Messages of a recorded ZeroMQ capture, each a list of frames; framing in the fixture folder's README. */
export function readRecordedMessages(url: URL): Buffer[][] {
  const bytes = readFileSync(url);
  const messages: Buffer[][] = [];
  let at = 0;
  const u32 = (): number => {
    at += 4;
    return bytes.readUInt32LE(at - 4);
  };
  while (at < bytes.length) {
    const frames: Buffer[] = [];
    for (let left = u32(); left > 0; left--) {
      const size = u32();
      frames.push(bytes.subarray(at, at + size));
      at += size;
    }
    messages.push(frames);
  }
  return messages;
}
