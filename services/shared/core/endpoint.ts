/** An `ip:port` pair, split. IPv6 addresses stand in brackets. */
export interface Endpoint {
  readonly host: string;
  readonly port: number;
}

/** Splits `127.0.0.1:8100` or `[::1]:8100`; `undefined` when it is neither or the port is outside 1–65535. */
export function parseEndpoint(text: string): Endpoint | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text);
  if (match === null) return undefined;
  const port = Number(match[3]);
  if (port < 1 || port > 65_535) return undefined;
  return { host: match[1] ?? match[2] ?? "", port };
}
