import { defaultFrameBytesMax, defaultWindowBytes, h2Error, int31Max, settingId } from "./codes.ts";

/** What the client told in SETTINGS, as far as a server that never pushes needs it. */
export class PeerSettings {
  initialWindowBytes = defaultWindowBytes;
  frameBytesMax = defaultFrameBytesMax;

  /**
   * Reads the parameters in `bytes[start, end)`, whose length is a multiple of six, in order. Returns the error code
   * of the first one that is out of range, or 0 (RFC 9113 §6.5.2). Unknown ones are ignored; the table size and the
   * header list limit are not needed, since answers use no dynamic table and are small.
   */
  read(bytes: Uint8Array, start: number, end: number): number {
    for (let at = start; at + 6 <= end; at += 6) {
      const id = ((bytes[at] as number) << 8) | (bytes[at + 1] as number);
      const value =
        (((bytes[at + 2] as number) << 24) |
          ((bytes[at + 3] as number) << 16) |
          ((bytes[at + 4] as number) << 8) |
          (bytes[at + 5] as number)) >>>
        0;
      if (id === settingId.enablePush) {
        if (value > 1) return h2Error.protocol;
      } else if (id === settingId.initialWindowSize) {
        if (value > int31Max) return h2Error.flowControl;
        this.initialWindowBytes = value;
      } else if (id === settingId.maxFrameSize) {
        if (value < defaultFrameBytesMax || value > 0xff_ffff) return h2Error.protocol;
        this.frameBytesMax = value;
      }
    }
    return h2Error.none;
  }
}
