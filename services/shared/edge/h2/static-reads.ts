import { Socket, type SocketConstructorOpts } from "node:net";

/** The part of an accepted socket's inner handle that reads into a buffer of ours. */
interface ReadableHandle {
  useUserBuffer(buffer: Uint8Array): void;
}

/**
 * Takes over a socket that was accepted with `pauseOnConnect`, so that every read lands in `buffer` instead of fresh
 * memory, and starts reading. Node offers this (`onread`) for sockets that connect only, while the constructor takes
 * any handle; when the socket has no such handle, as in another runtime, it is left alone and undefined returned.
 *
 * One buffer may serve all sockets of a thread: the system reads into it right before `onRead`, which must use the
 * bytes before it returns.
 */
export function readInto(
  accepted: Socket,
  buffer: Uint8Array,
  onRead: (length: number) => void,
): Socket | undefined {
  const inner = accepted as unknown as { _handle: ReadableHandle | null };
  const handle = inner._handle;
  if (handle === null || typeof handle.useUserBuffer !== "function") return undefined;
  inner._handle = null;
  const options = {
    handle,
    onread: {
      buffer,
      callback: (length: number) => {
        onRead(length);
        return true;
      },
    },
  };
  const socket = new Socket(options as unknown as SocketConstructorOpts);
  socket.resume();
  return socket;
}
